//! What can be chosen.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// Compares counterx with what people use today, by pgbench, on throw-away clusters.
#[derive(Clone, Debug, Parser)]
#[command(name = "counterx-bench", disable_version_flag = true)]
pub(crate) struct Options {
    /// Which sections to run; all, when none is named
    #[arg(long, value_enum, ignore_case = true, value_delimiter = ',')]
    sections: Vec<Section>,

    /// Shorter slices, fewer rounds, smaller sizes: about a quarter of the time
    #[arg(long)]
    pub(crate) quick: bool,

    /// Clients that write at the same time, where nothing else is said
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) clients: u32,

    /// Length of a slice [default: 3; quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,

    /// Turns that each of what is compared has [default: 5; quick: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// Length of the steady load, and of the run beside an old snapshot [default: 600; quick: 40]
    #[arg(long, value_parser = clap::value_parser!(u32).range(8..))]
    long_seconds: Option<u32>,

    /// Increments per second of the steady load
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) steady_rate: u32,

    /// Rows of the large tables that are tracked [default: 10,000,000; quick: 1,000,000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(10_000..))]
    rows: Option<u32>,

    /// Add to the report that is there, in place of what it has of the same sections
    #[arg(long)]
    append: bool,

    /// The same, and run only what is not in it: goes on where a run has ended
    #[arg(long)]
    pub(crate) resume: bool,

    /// Directory of report.md, report.json and the plots
    #[arg(long, default_value_os_t = below_root("target/bench"))]
    pub(crate) output: PathBuf,

    /// Run nothing; copy the report and its plots there, and fill its figures into
    /// docs/performance.md and README.md
    #[arg(long, value_name = "DIRECTORY", num_args = 0..=1, default_missing_value = "docs/bench")]
    publish: Option<PathBuf>,
}

impl Options {
    /// The chosen sections, each once, in the order of the report.
    pub(crate) fn sections(&self) -> Vec<Section> {
        let all = Section::value_variants().iter().copied();
        all.filter(|section| self.sections.is_empty() || self.sections.contains(section))
            .collect()
    }

    pub(crate) fn append(&self) -> bool {
        self.append || self.resume
    }

    /// One of two sizes: that of a quick run, and that of a full one.
    pub(crate) fn size<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    pub(crate) fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(self.size(1, 3))
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(self.size(2, 5))
    }

    /// Of what is compared in many places at once, and is no goal.
    pub(crate) fn few_rounds(&self) -> u32 {
        self.rounds().min(3)
    }

    /// The same for the length of a slice.
    pub(crate) fn short_seconds(&self) -> u32 {
        self.seconds().min(2)
    }

    pub(crate) fn long_seconds(&self) -> u32 {
        self.long_seconds.unwrap_or(self.size(40, 600))
    }

    pub(crate) fn rows(&self) -> u32 {
        self.rows.unwrap_or(self.size(1_000_000, 10_000_000))
    }

    /// Where to publish to. Relative paths are those of the checkout, whatever the directory that
    /// this is called in.
    pub(crate) fn publish(&self) -> Option<PathBuf> {
        self.publish.as_deref().map(below_root)
    }
}

/// What one cluster is made for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Section {
    Hot,
    Clients,
    Hits,
    Keys,
    Batch,
    Bulk,
    Redis,
    Order,
    Tracks,
    History,
    Read,
    Lists,
    Bounded,
    Windows,
    Streams,
    Fold,
    Folders,
    Memory,
    Growth,
    Tuning,
    Snapshot,
    Steady,
}

impl Section {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Clients => "clients",
            Self::Hits => "hits",
            Self::Keys => "keys",
            Self::Batch => "batch",
            Self::Bulk => "bulk",
            Self::Redis => "redis",
            Self::Order => "order",
            Self::Tracks => "tracks",
            Self::History => "history",
            Self::Read => "read",
            Self::Lists => "lists",
            Self::Bounded => "bounded",
            Self::Windows => "windows",
            Self::Streams => "streams",
            Self::Fold => "fold",
            Self::Folders => "folders",
            Self::Memory => "memory",
            Self::Growth => "growth",
            Self::Tuning => "tuning",
            Self::Snapshot => "snapshot",
            Self::Steady => "steady",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Hot => "one hot counter",
            Self::Clients => "from 1 to 128 clients, durable and not",
            Self::Hits => "hits: counted by themselves, many in one commit",
            Self::Keys => "many counters",
            Self::Batch => "many increments in a transaction",
            Self::Bulk => "a million increments in one statement",
            Self::Redis => "Redis",
            Self::Order => "an order that changes three counters",
            Self::Tracks => "tracked tables",
            Self::History => "history: what was counted when",
            Self::Read => "point reads",
            Self::Lists => "lists, ranks and sums of a million counters",
            Self::Bounded => "a bounded counter",
            Self::Windows => "windows: limits that renew themselves",
            Self::Streams => "streams: who wants to know of changes",
            Self::Fold => "what folding costs",
            Self::Folders => "several workers of one database",
            Self::Memory => "memory",
            Self::Growth => "more counters, more pending deltas",
            Self::Tuning => "settings of the server",
            Self::Snapshot => "an open snapshot",
            Self::Steady => "steady load: space and WAL over time",
        }
    }
}

/// A path relative to the checkout, made absolute.
pub(crate) fn below_root(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_once_and_in_order() {
        let options = Options::parse_from(["bench", "--sections", "redis,HOT,redis"]);
        assert_eq!(options.sections(), [Section::Hot, Section::Redis]);
        let options = Options::parse_from(["bench"]);
        assert_eq!(options.sections().len(), Section::value_variants().len());
        assert!(Options::try_parse_from(["bench", "--sections", "g"]).is_err());
    }

    #[test]
    fn names_are_those_of_the_options() {
        for section in Section::value_variants() {
            let value = section.to_possible_value().unwrap();
            assert_eq!(value.get_name(), section.name());
        }
    }

    #[test]
    fn quick_is_smaller_unless_told_otherwise() {
        let options = Options::parse_from(["bench", "--quick", "--rounds", "4"]);
        assert_eq!((options.seconds(), options.rounds()), (1, 4));
        assert_eq!((options.rows(), options.few_rounds()), (1_000_000, 3));
        assert_eq!(Options::parse_from(["bench"]).seconds(), 3);
        assert_eq!(Options::parse_from(["bench"]).rows(), 10_000_000);
    }

    #[test]
    fn publishing_has_a_place_of_its_own() {
        assert_eq!(Options::parse_from(["bench"]).publish(), None);
        let options = Options::parse_from(["bench", "--publish"]);
        assert!(options.publish().unwrap().ends_with("docs/bench"));
        let options = Options::parse_from(["bench", "--publish", "/x"]);
        assert_eq!(options.publish().unwrap(), Path::new("/x"));
    }
}
