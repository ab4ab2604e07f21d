//! The report: Markdown and plots for people, JSON for programs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::goals::{Goal, Reached};
use crate::options::{Options, Section};
use crate::pgbench::Latency;
use crate::plot::Plot;
use crate::race::Race;
use crate::server::{About, load_average};
use crate::stats::{Series, Unit};

const MARKDOWN: &str = "report.md";
const JSON: &str = "report.json";

/// All that is known, of one run or of several.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Of the last run.
    pub(crate) about: About,
    /// In their order, each once.
    sections: Vec<Measured>,
}

/// What a section came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    section: Section,
    /// What is compared, and how.
    pub(crate) how: String,
    /// How it was run.
    conditions: Conditions,
    /// Why there is nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    pub(crate) goals: Vec<Reached>,
    pub(crate) races: Vec<Race>,
    pub(crate) ratios: Vec<Series>,
    pub(crate) figures: Vec<Series>,
    pub(crate) latencies: Vec<Latencies>,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Conditions {
    started: String,
    clients: u32,
    rounds: u32,
    seconds: u32,
    quick: bool,
    /// Of the machine before and after. The section's own work is in the latter.
    load_averages: [String; 2],
    took_seconds: f64,
}

/// The latencies of one kind of read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) what: String,
    pub(crate) mean: Series,
    pub(crate) p50: Series,
    pub(crate) p99: Series,
}

/// Anything else. The first column is text, the others are mostly figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, head: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            head: head.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }
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

impl Measured {
    pub(crate) fn new(section: Section, how: impl Into<String>) -> Self {
        Self {
            section,
            how: how.into(),
            conditions: Conditions::default(),
            skipped: None,
            goals: Vec::new(),
            races: Vec::new(),
            ratios: Vec::new(),
            figures: Vec::new(),
            latencies: Vec::new(),
            tables: Vec::new(),
            plots: Vec::new(),
        }
    }

    /// Of something that this machine cannot do, or that went wrong.
    pub(crate) fn skipped(section: Section, why: impl Into<String>) -> Self {
        let mut measured = Self::new(section, "");
        measured.skipped = Some(why.into());
        measured
    }

    pub(crate) fn goal(&mut self, goal: Goal, measured: Series) {
        self.goals.push(Reached { goal, measured });
    }

    pub(crate) fn set_conditions(&mut self, options: &Options, before: Before) {
        self.conditions = Conditions {
            started: before.started,
            clients: options.clients,
            rounds: options.rounds(),
            seconds: options.seconds(),
            quick: options.quick,
            load_averages: [before.load_average, load_average()],
            took_seconds: before.start.elapsed().as_secs_f64(),
        };
    }
}

/// What is known before a section.
pub(crate) struct Before {
    pub(crate) start: std::time::Instant,
    pub(crate) started: String,
    pub(crate) load_average: String,
}

impl Report {
    pub(crate) fn new(about: About) -> Self {
        Self {
            about,
            sections: Vec::new(),
        }
    }

    /// The one that was written to that directory.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(JSON);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("could not read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    /// Whether that directory has one.
    pub(crate) fn is_in(directory: &Path) -> bool {
        directory.join(JSON).exists()
    }

    /// In place of what was there of the same section.
    pub(crate) fn add(&mut self, measured: Measured) {
        self.sections
            .retain(|section| section.section != measured.section);
        self.sections.push(measured);
        self.sections.sort_by_key(|section| section.section);
    }

    /// Whether the section was measured.
    pub(crate) fn has(&self, section: Section) -> bool {
        self.sections
            .iter()
            .any(|measured| measured.section == section && measured.skipped.is_none())
    }

    /// Writes all files.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        let mut json = serde_json::to_string_pretty(self).context("could not write JSON")?;
        json.push('\n');
        let mut files = vec![
            (JSON.to_owned(), json),
            (MARKDOWN.to_owned(), self.markdown()),
        ];
        for plot in self.plots() {
            files.push((plot.file(), plot.svg()?));
        }
        for (name, text) in files {
            // All of it or nothing, so that a crash leaves the report of the sections before.
            let path = directory.join(&name);
            let new = directory.join(format!("{name}.new"));
            fs::write(&new, text)
                .and_then(|()| fs::rename(&new, &path))
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn plots(&self) -> impl Iterator<Item = &Plot> {
        self.sections.iter().flat_map(|section| &section.plots)
    }

    /// The report for people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("# counterx beside what people use today\n\n");
        text.push_str(&self.about_markdown());
        text.push_str("\n## Goals\n\n");
        text.push_str(&self.goals_markdown());
        for section in &self.sections {
            // Writing to a String cannot fail, here and below.
            let _ = write!(
                text,
                "\n## {}: {}\n\n{}",
                section.section.name(),
                section.section.title(),
                section.markdown("")
            );
        }
        text.push_str("\n## Settings\n\n");
        text.push_str(&self.settings_markdown());
        text
    }

    fn about_markdown(&self) -> String {
        let about = &self.about;
        let mut text = format!(
            "Medians of interleaved rounds; a ratio is made within each round. A line that tells \
             against counterx is here like any other.\n\n\
             - counterx {}\n- {}\n- {}\n- a page is written and on the disk in {}\n- {}; load average \
             before: {}\n",
            about.counterx,
            about.postgresql,
            about.machine,
            Unit::Microseconds.format(about.flush),
            about.started,
            about.load_average
        );
        let quick = self.sections.iter().any(|section| section.conditions.quick);
        if quick {
            text.push_str(
                "\n**A quick run**, of short slices and few rounds: it shows that all works.\n",
            );
        }
        text
    }

    fn goals_markdown(&self) -> String {
        let head = ["", "wanted", "measured", "lowest to highest", ""];
        let rows: Vec<Vec<String>> = Goal::value_variants()
            .iter()
            .map(|&goal| match self.reached(goal) {
                Some(reached) => goal_row(reached),
                None => vec![
                    goal.what().to_owned(),
                    goal.wanted().format(goal.unit()),
                    String::new(),
                    String::new(),
                    format!("not measured (section {})", goal.section().name()),
                ],
            })
            .collect();
        table(&head, &rows)
    }

    fn reached(&self, goal: Goal) -> Option<&Reached> {
        let mut all = self.sections.iter().flat_map(|section| &section.goals);
        all.find(|reached| reached.goal == goal)
    }

    fn settings_markdown(&self) -> String {
        let settings = self.about.settings.iter();
        let rows: Vec<Vec<String>> = settings
            .map(|(name, value)| vec![name.clone(), value.clone()])
            .collect();
        table(&["setting", "value"], &rows)
    }

    /// A piece of the report for another document: `about`, `goals`, `settings`, `section/NAME`,
    /// `plot/NAME`, `goal/NAME`. None of what was not measured. Plots are in `plots`.
    pub(crate) fn piece(&self, key: &str, plots: &str) -> Option<String> {
        match key {
            "about" => return Some(self.about_markdown()),
            "goals" => return Some(self.goals_markdown()),
            "settings" => return Some(self.settings_markdown()),
            _ => {}
        }
        let (kind, name) = key.split_once('/')?;
        match kind {
            "section" => {
                let mut sections = self.sections.iter();
                let measured = sections.find(|section| section.section.name() == name)?;
                Some(measured.markdown(plots))
            }
            "plot" => {
                let plot = self.plots().find(|plot| plot.name == name)?;
                Some(image(plot, plots))
            }
            "goal" => {
                let reached = self.reached(Goal::from_str(name, true).ok()?)?;
                let Series { unit, median, .. } = reached.measured;
                Some(unit.format(median))
            }
            _ => None,
        }
    }

    /// What can be named, for a document that names something else.
    pub(crate) fn keys() -> BTreeSet<String> {
        let sections = Section::value_variants();
        let goals = Goal::value_variants();
        ["about", "goals", "settings"]
            .map(str::to_owned)
            .into_iter()
            .chain(
                sections
                    .iter()
                    .map(|section| format!("section/{}", section.name())),
            )
            .chain(goals.iter().filter_map(|goal| {
                let value = goal.to_possible_value()?;
                Some(format!("goal/{}", value.get_name()))
            }))
            .collect()
    }
}

impl Measured {
    /// Without a heading.
    fn markdown(&self, plots: &str) -> String {
        let Conditions {
            started,
            clients,
            rounds,
            seconds,
            quick,
            load_averages: [before, after],
            took_seconds,
        } = &self.conditions;
        let mut text = String::new();
        if let Some(why) = &self.skipped {
            let _ = writeln!(text, "Not measured: {why}");
            return text;
        }
        let _ = writeln!(text, "{}\n", self.how);
        for plot in &self.plots {
            let _ = writeln!(text, "{}\n", image(plot, plots));
        }
        for race in &self.races {
            text.push_str(&race_markdown(race));
            text.push('\n');
        }
        for (title, series) in [("ratio", &self.ratios), ("figure", &self.figures)] {
            if !series.is_empty() {
                let rows: Vec<Vec<String>> = series.iter().map(series_row).collect();
                text.push_str(&table(&[title, "median", "lowest", "highest"], &rows));
                text.push('\n');
            }
        }
        if !self.latencies.is_empty() {
            let head = ["read", "mean", "p50", "p99", "p99, lowest", "highest"];
            let rows: Vec<Vec<String>> = self.latencies.iter().map(latencies_row).collect();
            text.push_str(&table(&head, &rows));
            text.push('\n');
        }
        for one in &self.tables {
            let head: Vec<&str> = one.head.iter().map(String::as_str).collect();
            let _ = writeln!(text, "{}:\n\n{}", one.title, table(&head, &one.rows));
        }
        let kind = if *quick { "Quick: " } else { "" };
        let _ = writeln!(
            text,
            "{kind}{started}; slices of {seconds} s, {rounds} rounds, {clients} clients where nothing \
             else is said; {took_seconds:.0} s in all. Load average before: {before}; after: {after}."
        );
        text
    }
}

fn image(plot: &Plot, directory: &str) -> String {
    format!("![{}]({directory}{})", plot.title, plot.file())
}

/// The fastest first, whoever that is.
fn race_markdown(race: &Race) -> String {
    let first = race.rows.first().map_or("", |row| &row.name);
    let with_wal = race.rows.iter().any(|row| row.wal_bytes.is_some());
    let ratio = format!("{first}, times this");
    let mut head = vec![&*race.title, "rate", "lowest", "highest", &ratio];
    if with_wal {
        head.push("WAL bytes each");
    }
    let mut sorted: Vec<usize> = (0..race.rows.len()).collect();
    sorted.sort_by(|&a, &b| {
        let rate = |number: usize| race.rows[number].rate.median;
        rate(b).total_cmp(&rate(a))
    });
    let rows: Vec<Vec<String>> = sorted
        .into_iter()
        .map(|number| {
            let row = &race.rows[number];
            let Series {
                unit,
                median,
                min,
                max,
                ..
            } = row.rate;
            let mut cells = vec![
                if number == 0 {
                    format!("**{}**", row.name)
                } else {
                    row.name.clone()
                },
                unit.format(median),
                unit.format(min),
                unit.format(max),
                if number == 0 {
                    String::new()
                } else {
                    Unit::Ratio.format(row.ratio.median)
                },
            ];
            if with_wal {
                let bytes = row.wal_bytes.as_ref();
                cells.push(bytes.map_or_else(String::new, |bytes| format!("{:.0}", bytes.median)));
            }
            cells
        })
        .collect();
    table(&head, &rows)
}

fn goal_row(reached: &Reached) -> Vec<String> {
    let Series {
        unit,
        median,
        min,
        max,
        rounds,
        ..
    } = &reached.measured;
    vec![
        reached.goal.what().to_owned(),
        reached.goal.wanted().format(*unit),
        unit.format(*median),
        if rounds.len() == 1 {
            "measured once".to_owned()
        } else {
            format!("{} to {}", unit.format(*min), unit.format(*max))
        },
        if reached.met() { "met" } else { "**not met**" }.to_owned(),
    ]
}

fn series_row(series: &Series) -> Vec<String> {
    vec![
        series.what.clone(),
        series.unit.format(series.median),
        series.unit.format(series.min),
        series.unit.format(series.max),
    ]
}

fn latencies_row(latencies: &Latencies) -> Vec<String> {
    let time = |microseconds| Unit::Microseconds.format(microseconds);
    vec![
        latencies.what.clone(),
        time(latencies.mean.median),
        time(latencies.p50.median),
        time(latencies.p99.median),
        time(latencies.p99.min),
        time(latencies.p99.max),
    ]
}

/// The first column is text, the others are mostly figures.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "| {} |", head.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(head.len() - 1));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::race::Row;
    use std::collections::BTreeMap;

    pub(crate) fn report() -> Report {
        Report::new(About {
            started: "now".to_owned(),
            postgresql: "PostgreSQL 15".to_owned(),
            counterx: "0.1.0".to_owned(),
            machine: "2 processors".to_owned(),
            flush: 100.0,
            load_average: "0 0 0".to_owned(),
            settings: BTreeMap::from([("fsync".to_owned(), "on".to_owned())]),
        })
    }

    fn series(unit: Unit, value: f64) -> Series {
        Series::new("x", unit, vec![value]).unwrap()
    }

    pub(crate) fn measured(section: Section, goal: Goal, value: f64) -> Measured {
        let mut measured = Measured::new(section, "How.");
        measured.goal(goal, series(Unit::Ratio, value));
        let line = crate::plot::Line::new("a", vec![(1.0, 2.0)]);
        measured
            .plots
            .push(Plot::lines(section.name(), "T", "y", "x", vec![line]));
        measured
    }

    #[test]
    fn a_row_says_all_of_a_goal() {
        let goal = Goal::WalOfInsert;
        let measured = series(Unit::Ratio, 1.7);
        assert_eq!(
            goal_row(&Reached { goal, measured })[1..],
            ["at most 1.5", "1.700", "measured once", "**not met**"]
        );
        assert_eq!(
            table(&["a", "b"], &[vec!["1|2".to_owned(), "3".to_owned()]]),
            "| a | b |\n|---|---:|\n| 1\\|2 | 3 |\n"
        );
    }

    #[test]
    fn goals_that_were_not_measured_are_shown_as_such() {
        let mut report = report();
        report.add(measured(Section::Hot, Goal::HotOfInsert, 1.1));
        let text = report.markdown();
        assert!(
            text.contains("| 1.100 |") && text.contains("| met |"),
            "{text}"
        );
        let open = text.matches("not measured (section").count();
        assert_eq!(open, Goal::value_variants().len() - 1);
    }

    #[test]
    fn a_section_that_is_measured_again_takes_its_old_place() {
        let mut report = report();
        report.add(measured(Section::Read, Goal::ReadOfLookup, 1.0));
        report.add(measured(Section::Hot, Goal::HotOfInsert, 1.0));
        report.add(measured(Section::Hot, Goal::HotOfInsert, 2.0));
        let sections: Vec<Section> = report.sections.iter().map(|one| one.section).collect();
        assert_eq!(sections, [Section::Hot, Section::Read]);
        assert_eq!(report.piece("goal/hot-of-insert", "").unwrap(), "2.000");
        assert!(report.has(Section::Hot) && !report.has(Section::Order));
    }

    #[test]
    fn a_report_is_read_back() {
        let directory = std::env::temp_dir().join(format!("counterx-bench-{}", std::process::id()));
        let mut report = report();
        report.add(measured(Section::Hot, Goal::HotOfInsert, 1.0));
        report.add(Measured::skipped(Section::Redis, "there is none"));
        report.write(&directory).unwrap();
        let read = Report::read(&directory).unwrap();
        assert_eq!(read.markdown(), report.markdown());
        assert!(!read.has(Section::Redis));
        assert!(directory.join("hot.svg").exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_fastest_of_a_race_comes_first() {
        let row = |name: &str, rate| Row {
            name: name.to_owned(),
            rate: series(Unit::PerSecond, rate),
            wal_bytes: None,
            ratio: series(Unit::Ratio, 1.0),
        };
        let text = race_markdown(&Race {
            title: "who".to_owned(),
            rows: vec![row("counter_incr", 10.0), row("other", 20.0)],
        });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[2].starts_with("| other"), "{text}");
        assert!(lines[3].starts_with("| **counter_incr**"), "{text}");
    }
}
