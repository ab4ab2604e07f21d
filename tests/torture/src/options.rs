//! What can be chosen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// Drives counterx through crashes, full disks, standbys, restores, odd input and long loads, holds it
/// against an oracle, and reports what was tried and what was found.
#[derive(Clone, Debug, Parser)]
#[command(name = "torture", disable_version_flag = true)]
pub(crate) struct Options {
    /// For how long each part that goes by time goes on
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,

    /// Where all random choices come from: what a run did with it, the next one does again
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Which parts to run; all, when none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,

    /// The form for `make test`: a minute or so in all, and everything a size smaller
    #[arg(long)]
    pub(crate) short: bool,

    /// Only one of the histories, or orders, that go step by step: the one of this seed, which a
    /// finding names
    #[arg(long, value_name = "SEED")]
    pub(crate) history: Option<u64>,

    /// Add to the report that is there, instead of beginning a new one
    #[arg(long)]
    pub(crate) append: bool,

    /// Directory of report.md and report.json
    #[arg(long, default_value_os_t = default_output())]
    pub(crate) output: PathBuf,
}

impl Options {
    /// The chosen parts, each once, in the order of the report.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let all = Part::value_variants().iter().copied();
        all.filter(|part| self.parts.is_empty() || self.parts.contains(part))
            .collect()
    }

    /// How long a part goes on.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// One of two sizes: that of the short form, and that of the long one.
    pub(crate) fn size<T>(&self, short: T, long: T) -> T {
        if self.short { short } else { long }
    }

    /// A seed for something of its own: different for each `what`, the same in each run.
    pub(crate) fn seed_for(&self, what: &str) -> u64 {
        // FNV-1a (Fowler, Noll, Vo), over the seed and the words.
        let bytes = self.seed.to_le_bytes();
        bytes
            .iter()
            .chain(what.as_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }
}

/// A part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    Histories,
    Orders,
    Tracks,
    Crashes,
    Replication,
    Snapshots,
    Moves,
    Load,
    Input,
    Checks,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Histories => "histories",
            Self::Orders => "orders",
            Self::Tracks => "tracks",
            Self::Crashes => "crashes",
            Self::Replication => "replication",
            Self::Snapshots => "snapshots",
            Self::Moves => "moves",
            Self::Load => "load",
            Self::Input => "input",
            Self::Checks => "checks",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Histories => "randomised histories against an oracle",
            Self::Orders => "random transactions that must have an order",
            Self::Tracks => "tracked tables that everything happens to",
            Self::Crashes => "crashes and full disks",
            Self::Replication => "standbys, backups and publications",
            Self::Snapshots => "old snapshots and long transactions",
            Self::Moves => "dump, restore, upgrade and move",
            Self::Load => "many connections, names and deltas",
            Self::Input => "bad input",
            Self::Checks => "the server's own checks",
        }
    }
}

fn default_output() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .join("target/torture")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_once_and_in_order() {
        let options = Options::parse_from(["torture", "--parts", "load,crashes,load"]);
        assert_eq!(options.parts(), [Part::Crashes, Part::Load]);
        assert_eq!(Options::parse_from(["torture"]).parts().len(), 10);
        assert!(Options::try_parse_from(["torture", "--parts", "peace"]).is_err());
    }

    #[test]
    fn seeds_differ_by_what_they_are_for_and_not_by_the_run() {
        let one = Options::parse_from(["torture", "--seed", "7"]);
        let other = Options::parse_from(["torture", "--seed", "8"]);
        assert_eq!(one.seed_for("a"), one.clone().seed_for("a"));
        assert_ne!(one.seed_for("a"), one.seed_for("b"));
        assert_ne!(one.seed_for("a"), other.seed_for("a"));
    }
}
