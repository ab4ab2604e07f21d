//! The report: Markdown for people, JSON for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::options::{Options, Section};
use crate::pgbench::Latency;
use crate::server::About;
use crate::stats::{Series, Unit};

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) about: About,
    pub(crate) options: Options,
    pub(crate) sections: Vec<Measured>,
}

/// What a section came to.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    section: Section,
    title: &'static str,
    /// What is compared, and how.
    how: String,
    pub(crate) targets: Vec<Target>,
    pub(crate) ratios: Vec<Series>,
    pub(crate) figures: Vec<Series>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) latencies: Vec<Latencies>,
    /// What happened one after the other, in a section that has a long run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) windows: Vec<Window>,
    /// Of the machine at the section's end; the section's own work is in it.
    pub(crate) load_average: String,
}

/// The latencies of one kind of read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latencies {
    pub(crate) what: String,
    pub(crate) mean: Series,
    pub(crate) p50: Series,
    p99: Series,
}

/// A figure that is wanted to be so large, or so small. The median counts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    wanted: Wanted,
    measured: Series,
    met: bool,
}

/// Which way a target lies.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// A part of a long run.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Window {
    /// Whether the snapshot was open.
    pub(crate) snapshot: bool,
    /// Seconds since the start.
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Increments per second.
    pub(crate) rate: f64,
    pub(crate) hot: Latency,
    pub(crate) cold: Latency,
    pub(crate) lookup: Latency,
}

impl Latencies {
    pub(crate) fn new(what: &str, rounds: &[Latency]) -> Result<Self> {
        let series = |name: &str, of: fn(&Latency) -> f64| {
            let rounds = rounds.iter().map(of).collect();
            Series::new(format!("{what}: {name}"), Unit::Microseconds, rounds)
        };
        Ok(Self {
            what: what.to_owned(),
            mean: series("mean", |latency| latency.mean)?,
            p50: series("p50", |latency| latency.p50)?,
            p99: series("p99", |latency| latency.p99)?,
        })
    }
}

impl Target {
    pub(crate) fn new(measured: Series, wanted: Wanted) -> Self {
        let met = match wanted {
            Wanted::AtLeast(bound) => measured.median >= bound,
            Wanted::AtMost(bound) => measured.median <= bound,
        };
        Self {
            wanted,
            measured,
            met,
        }
    }

    fn wanted(&self) -> String {
        let (word, bound) = match self.wanted {
            Wanted::AtLeast(bound) => ("at least", bound),
            Wanted::AtMost(bound) => ("at most", bound),
        };
        match self.measured.unit {
            Unit::Ratio => format!("{word} {bound}"),
            unit => format!("{word} {}", unit.format(bound)),
        }
    }
}

impl Measured {
    pub(crate) fn new(section: Section, how: impl Into<String>) -> Self {
        Self {
            section,
            title: section.title(),
            how: how.into(),
            targets: Vec::new(),
            ratios: Vec::new(),
            figures: Vec::new(),
            latencies: Vec::new(),
            windows: Vec::new(),
            load_average: String::new(),
        }
    }
}

impl Report {
    pub(crate) fn new(options: Options, about: About) -> Self {
        Self {
            about,
            options,
            sections: Vec::new(),
        }
    }

    pub(crate) fn markdown_path(&self) -> PathBuf {
        self.options.output.join("report.md")
    }

    pub(crate) fn json_path(&self) -> PathBuf {
        self.options.output.join("report.json")
    }

    /// Writes both files.
    pub(crate) fn write(&self) -> Result<()> {
        let directory = &self.options.output;
        fs::create_dir_all(directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        let mut json = serde_json::to_string_pretty(self).context("could not write JSON")?;
        json.push('\n');
        for (path, text) in [
            (self.markdown_path(), self.markdown()),
            (self.json_path(), json),
        ] {
            fs::write(&path, text)
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }

    /// The report for people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("# counterx beside its alternatives\n\n");
        let Options {
            clients,
            seconds,
            rounds,
            ..
        } = self.options;
        let about = &self.about;
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            text,
            "{}. {clients} clients, slices of {seconds} s, {rounds} rounds. Medians of the rounds; \
             a ratio is made within each round.\n\n\
             - counterx {}, {}\n- {}; load average before: {}\n",
            about.started, about.counterx, about.postgresql, about.machine, about.load_average
        );
        let targets = self.sections.iter().flat_map(|section| &section.targets);
        let rows: Vec<[String; 5]> = targets.map(target_row).collect();
        if !rows.is_empty() {
            text.push_str("## Targets\n\n");
            let head = ["", "target", "measured", "lowest to highest", ""];
            table(&mut text, &head, &rows);
        }
        for section in &self.sections {
            section.markdown(&mut text);
        }
        text.push_str("## Settings\n\n");
        let rows: Vec<[String; 2]> = about
            .settings
            .iter()
            .map(|(name, value)| [name.clone(), value.clone()])
            .collect();
        table(&mut text, &["setting", "value"], &rows);
        text
    }
}

impl Measured {
    fn markdown(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "## {}: {}\n\n{}\n",
            self.section.letter(),
            self.title,
            self.how
        );
        for (title, series) in [("ratio", &self.ratios), ("figure", &self.figures)] {
            if !series.is_empty() {
                let rows: Vec<[String; 4]> = series.iter().map(series_row).collect();
                table(text, &[title, "median", "lowest", "highest"], &rows);
            }
        }
        if !self.latencies.is_empty() {
            let head = ["read", "mean", "lowest", "highest", "p50", "p99"];
            let rows: Vec<[String; 6]> = self.latencies.iter().map(latencies_row).collect();
            table(text, &head, &rows);
        }
        if !self.windows.is_empty() {
            let head = [
                "seconds",
                "increments",
                "hot counter, p50",
                "p99",
                "cold counter, p50",
                "p99",
                "look-up, p50",
                "p99",
            ];
            let rows: Vec<[String; 8]> = self.windows.iter().map(window_row).collect();
            table(text, &head, &rows);
        }
        let _ = writeln!(text, "Load average at its end: {}.\n", self.load_average);
    }
}

fn target_row(target: &Target) -> [String; 5] {
    let Series {
        what,
        unit,
        median,
        min,
        max,
        rounds,
    } = &target.measured;
    [
        what.clone(),
        target.wanted(),
        unit.format(*median),
        if rounds.len() == 1 {
            "measured once".to_owned()
        } else {
            format!("{} to {}", unit.format(*min), unit.format(*max))
        },
        if target.met { "met" } else { "**not met**" }.to_owned(),
    ]
}

fn series_row(series: &Series) -> [String; 4] {
    [
        series.what.clone(),
        series.unit.format(series.median),
        series.unit.format(series.min),
        series.unit.format(series.max),
    ]
}

fn latencies_row(latencies: &Latencies) -> [String; 6] {
    let time = |microseconds| Unit::Microseconds.format(microseconds);
    [
        latencies.what.clone(),
        time(latencies.mean.median),
        time(latencies.mean.min),
        time(latencies.mean.max),
        time(latencies.p50.median),
        time(latencies.p99.median),
    ]
}

fn window_row(window: &Window) -> [String; 8] {
    let time = |microseconds| Unit::Microseconds.format(microseconds);
    [
        if window.snapshot {
            format!("{:.0} to {:.0}", window.from, window.to)
        } else {
            format!("without it, {:.0}", window.to - window.from)
        },
        Unit::PerSecond.format(window.rate),
        time(window.hot.p50),
        time(window.hot.p99),
        time(window.cold.p50),
        time(window.cold.p99),
        time(window.lookup.p50),
        time(window.lookup.p99),
    ]
}

/// The first column is text, the others are mostly figures.
fn table<const N: usize>(text: &mut String, head: &[&str; N], rows: &[[String; N]]) {
    let _ = writeln!(text, "| {} |", head.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(N - 1));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(unit: Unit, value: f64) -> Series {
        Series::new("x", unit, vec![value]).unwrap()
    }

    #[test]
    fn a_target_is_met_or_it_is_not() {
        for (wanted, value, met) in [
            (Wanted::AtLeast(0.95), 0.95, true),
            (Wanted::AtLeast(0.95), 0.94, false),
            (Wanted::AtMost(1.5), 1.5, true),
            (Wanted::AtMost(1.5), 1.6, false),
        ] {
            let target = Target::new(series(Unit::Ratio, value), wanted);
            assert_eq!(target.met, met, "{wanted:?} {value}");
        }
    }

    #[test]
    fn a_row_says_all_of_a_target() {
        let target = Target::new(series(Unit::Seconds, 0.7), Wanted::AtMost(0.5));
        assert_eq!(
            target_row(&target),
            [
                "x",
                "at most 0.500 s",
                "0.700 s",
                "measured once",
                "**not met**"
            ]
        );
        let mut text = String::new();
        table(
            &mut text,
            &["a", "b"],
            &[["1|2".to_owned(), "3".to_owned()]],
        );
        assert_eq!(text, "| a | b |\n|---|---:|\n| 1\\|2 | 3 |\n\n");
    }
}
