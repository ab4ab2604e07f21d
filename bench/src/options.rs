//! What can be chosen.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Compares counterx with INSERT, UPDATE and slot rows, by pgbench, on throw-away clusters.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "counterx-bench", disable_version_flag = true)]
pub(crate) struct Options {
    /// Sections to run: a hot counter, b a million calls, c reads, d an old snapshot, e a million counters,
    /// f a bounded counter
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_delimiter = ',',
        default_value = "a,b,c,d,e,f"
    )]
    pub(crate) sections: Vec<Section>,

    /// Clients that write at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) clients: u32,

    /// Length of a slice
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,

    /// Turns that each of what is compared has
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,

    /// Length of the run beside one old snapshot, in section d
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(20..))]
    pub(crate) old_snapshot_seconds: u32,

    /// Directory of report.md and report.json
    #[arg(long, default_value_os_t = default_output())]
    pub(crate) output: PathBuf,
}

/// What one cluster is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Section {
    A,
    B,
    C,
    D,
    E,
    F,
}

impl Section {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
            Self::C => 'C',
            Self::D => 'D',
            Self::E => 'E',
            Self::F => 'F',
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::A => "one hot counter",
            Self::B => "a million calls in one statement",
            Self::C => "point reads",
            Self::D => "an open REPEATABLE READ snapshot",
            Self::E => "a million counters",
            Self::F => "a bounded counter",
        }
    }
}

fn default_output() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .join("target/bench")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_letters_of_either_case() {
        let options = Options::parse_from(["bench", "--sections", "b,D"]);
        assert_eq!(options.sections, [Section::B, Section::D]);
        let options = Options::parse_from(["bench"]);
        assert_eq!(options.sections.len(), 6);
        assert!(Options::try_parse_from(["bench", "--sections", "g"]).is_err());
    }
}
