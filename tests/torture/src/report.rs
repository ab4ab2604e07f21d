//! The report: Markdown for people, and JSON whose form is fixed for programs.
//!
//! The form of the JSON has a number, [`FORMAT`]: a change that a reader could trip over raises it.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::options::{Options, Part};

/// The number of the JSON's form.
const FORMAT: u32 = 1;

/// All of a run, or of several that were added up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    format: u32,
    parts: Vec<PartReport>,
    #[serde(skip)]
    output: PathBuf,
}

/// What a part came to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PartReport {
    part: Part,
    seed: u64,
    short: bool,
    /// How long it took.
    pub(crate) seconds: f64,
    tried: Vec<Tried>,
    figures: Vec<Figure>,
    findings: Vec<Finding>,
    skipped: Vec<Skipped>,
}

/// Something that was done, and how often.
#[derive(Debug, Serialize, Deserialize)]
struct Tried {
    what: String,
    times: u64,
}

/// Something that was measured.
#[derive(Debug, Serialize, Deserialize)]
struct Figure {
    what: String,
    value: f64,
    unit: Unit,
    /// It is wanted to be at most that.
    at_most: Option<f64>,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    PerSecond,
    Seconds,
    Milliseconds,
    Count,
    Mebibytes,
    Ratio,
}

/// A promise that was not kept.
#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    what: String,
    detail: String,
    /// The command that does it again.
    replay: String,
}

/// What was not tried.
#[derive(Debug, Serialize, Deserialize)]
struct Skipped {
    what: String,
    why: String,
}

impl PartReport {
    pub(crate) fn new(part: Part, options: &Options) -> Self {
        Self {
            part,
            seed: options.seed,
            short: options.short,
            seconds: 0.0,
            tried: Vec::new(),
            figures: Vec::new(),
            findings: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Something was done, so many times (more).
    pub(crate) fn tried(&mut self, what: &str, times: u64) {
        match self.tried.iter_mut().find(|tried| tried.what == what) {
            Some(known) => known.times += times,
            None => self.tried.push(Tried {
                what: what.to_owned(),
                times,
            }),
        }
    }

    /// Something was measured.
    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: Unit) {
        self.figures.push(Figure {
            what: what.to_owned(),
            value,
            unit,
            at_most: None,
        });
    }

    /// Something was measured that is wanted to be small.
    pub(crate) fn limited(&mut self, what: &str, value: f64, unit: Unit, at_most: f64) {
        self.figures.push(Figure {
            what: what.to_owned(),
            value,
            unit,
            at_most: Some(at_most),
        });
    }

    /// A promise was not kept.
    pub(crate) fn finding(&mut self, what: &str, detail: impl Into<String>) {
        let mut replay = format!("make torture PARTS={} SEED={}", self.part.name(), self.seed);
        if self.short {
            replay.push_str(" SHORT=yes");
        }
        self.findings.push(Finding {
            what: what.to_owned(),
            detail: detail.into(),
            replay,
        });
    }

    /// Runs one step of the part; that it failed is a finding, and the part goes on.
    pub(crate) fn step(&mut self, what: &str, step: impl FnOnce(&mut Self) -> Result<()>) {
        println!("   {what}");
        if let Err(error) = step(self) {
            self.finding(what, causes(&error));
        }
    }

    /// Something could not be tried here.
    pub(crate) fn skipped(&mut self, what: &str, why: impl Into<String>) {
        self.skipped.push(Skipped {
            what: what.to_owned(),
            why: why.into(),
        });
    }

    /// Says what it came to; the last line is in the form that `scripts/test` counts.
    pub(crate) fn print(&self) {
        print!("{}", self.markdown());
        let result = if self.findings.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!("test torture-{} ... {result}", self.part.name());
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}: {}\n\n", self.part.name(), self.part.title());
        let form = if self.short { "short" } else { "long" };
        let _ = writeln!(
            text,
            "Seed {}, {form} form, {:.0} s.\n",
            self.seed, self.seconds
        );
        if !self.tried.is_empty() {
            text.push_str("| tried | times |\n|---|---|\n");
            for tried in &self.tried {
                let _ = writeln!(text, "| {} | {} |", tried.what, tried.times);
            }
            text.push('\n');
        }
        if !self.figures.is_empty() {
            text.push_str("| measured | | wanted |\n|---|---|---|\n");
            for figure in &self.figures {
                let value = figure.unit.format(figure.value);
                let wanted = match figure.at_most {
                    None => String::new(),
                    Some(bound) => {
                        let met = if figure.value <= bound {
                            "met"
                        } else {
                            "**not met**"
                        };
                        format!("at most {}: {met}", figure.unit.format(bound))
                    }
                };
                let _ = writeln!(text, "| {} | {value} | {wanted} |", figure.what);
            }
            text.push('\n');
        }
        for skipped in &self.skipped {
            let _ = writeln!(text, "- not tried: {}, as {}", skipped.what, skipped.why);
        }
        if !self.skipped.is_empty() {
            text.push('\n');
        }
        if self.findings.is_empty() {
            text.push_str("Nothing was found.\n\n");
        }
        for finding in &self.findings {
            let _ = writeln!(
                text,
                "### Found: {}\n\n```text\n{}\n```\n\nAgain: `{}`\n",
                finding.what, finding.detail, finding.replay
            );
        }
        text
    }
}

/// An error and what it came from, a line each. (Its own form for people has a backtrace, too, where
/// the environment asks for those.)
pub(crate) fn causes(error: &anyhow::Error) -> String {
    let lines: Vec<String> = error.chain().map(ToString::to_string).collect();
    lines.join("\nbecause: ")
}

impl Unit {
    fn format(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds => format!("{value:.3} ms"),
            Self::Count => format!("{value:.0}"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Ratio => format!("{value:.2}"),
        }
    }
}

impl Report {
    /// A new report, or the one that is there when parts are to be added to it.
    ///
    /// # Errors
    /// The one that is there cannot be read.
    pub(crate) fn open(options: &Options) -> Result<Self> {
        let mut report = Self {
            format: FORMAT,
            parts: Vec::new(),
            output: options.output.clone(),
        };
        if options.append && report.json_path().exists() {
            let text =
                fs::read_to_string(report.json_path()).context("could not read the report")?;
            let known: Self = serde_json::from_str(&text).context("could not read the report")?;
            ensure!(
                known.format == FORMAT,
                "the report has the form {}, not {FORMAT}",
                known.format
            );
            report.parts = known.parts;
        }
        Ok(report)
    }

    /// Adds a part, in the place of an earlier run of it.
    pub(crate) fn put(&mut self, part: PartReport) {
        self.parts.retain(|known| known.part != part.part);
        self.parts.push(part);
        self.parts.sort_by_key(|part| part.part);
    }

    /// Was nothing found in the parts of this run?
    pub(crate) fn is_clean(&self, options: &Options) -> bool {
        let ours = options.parts();
        self.parts
            .iter()
            .filter(|part| ours.contains(&part.part))
            .all(|part| part.findings.is_empty())
    }

    pub(crate) fn markdown_path(&self) -> PathBuf {
        self.output.join("report.md")
    }

    pub(crate) fn json_path(&self) -> PathBuf {
        self.output.join("report.json")
    }

    /// Writes both files.
    pub(crate) fn write(&self) -> Result<()> {
        fs::create_dir_all(&self.output)
            .with_context(|| format!("could not make {}", self.output.display()))?;
        let mut json = serde_json::to_string_pretty(self).context("could not write JSON")?;
        json.push('\n');
        let mut text = String::from("# Torture report\n\n");
        for part in &self.parts {
            text.push_str(&part.markdown());
        }
        for (path, text) in [(self.json_path(), json), (self.markdown_path(), text)] {
            fs::write(&path, text)
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn options(directory: &std::path::Path, more: &[&str]) -> Options {
        let output = directory.to_str().unwrap();
        Options::parse_from(["torture", "--output", output].iter().chain(more))
    }

    #[test]
    fn a_report_adds_up_and_keeps_its_form() {
        let directory =
            std::env::temp_dir().join(format!("counterx-report-{}", std::process::id()));
        let first = options(&directory, &["--seed", "3"]);
        let mut report = Report::open(&first).unwrap();
        let mut part = PartReport::new(Part::Load, &first);
        part.tried("deltas", 2);
        part.tried("deltas", 3);
        part.limited("read", 2.0, Unit::Ratio, 1.2);
        report.put(part);
        report.write().unwrap();

        let second = options(&directory, &["--append", "--parts", "crashes", "--short"]);
        let mut report = Report::open(&second).unwrap();
        let mut part = PartReport::new(Part::Crashes, &second);
        part.finding("a wrong number", "5 for 4");
        part.skipped("a full disk", "nothing can be mounted here");
        report.put(part);
        report.write().unwrap();
        assert!(!report.is_clean(&second));
        assert!(report.is_clean(&options(&directory, &["--parts", "load"])));

        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(report.json_path()).unwrap()).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["parts"][0]["part"], "crashes");
        assert_eq!(json["parts"][0]["findings"][0]["detail"], "5 for 4");
        assert_eq!(
            json["parts"][0]["findings"][0]["replay"],
            "make torture PARTS=crashes SEED=1 SHORT=yes"
        );
        assert_eq!(json["parts"][1]["tried"][0]["times"], 5);
        assert_eq!(json["parts"][1]["figures"][0]["at_most"], 1.2);
        let text = fs::read_to_string(report.markdown_path()).unwrap();
        assert!(text.contains("**not met**"));
        fs::remove_dir_all(&directory).unwrap();
    }
}
