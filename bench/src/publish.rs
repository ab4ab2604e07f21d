//! A checked-in copy of the report, and its figures in the documents.
//!
//! These have places for them: what is between `<!-- bench:KEY -->` and `<!-- /bench -->` is
//! replaced by that piece of the report. A piece that was not measured leaves its place as it is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::options::below_root;
use crate::report::Report;

const OPEN: &str = "<!-- bench:";
const CLOSE: &str = "<!-- /bench -->";

/// Documents with such places, and the directories that their links are relative to.
const DOCUMENTS: [(&str, &str); 2] = [("docs/performance.md", "docs"), ("README.md", ".")];

/// What stands in a place that no run has filled yet.
const EMPTY: &str = "*not measured yet*";

pub(crate) fn publish(report: &Report, directory: &Path) -> Result<()> {
    report.write(directory)?;
    println!("The report and its plots are in {}.", directory.display());
    for (document, base) in DOCUMENTS {
        let path = below_root(document);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("could not read {}", path.display()))?;
        let plots = relative(directory, base);
        let filled = fill(&text, |key| report.piece(key, &plots))
            .with_context(|| format!("could not fill the places of {document}"))?;
        fs::write(&path, &filled).with_context(|| format!("could not write {}", path.display()))?;
        let left = filled.matches(EMPTY).count();
        println!("{document} has its figures; {left} of its places are not measured yet.");
    }
    Ok(())
}

/// The directory of the plots as a link from a document in `base` names it.
fn relative(directory: &Path, base: &str) -> String {
    let base: PathBuf = below_root(base).components().collect();
    let directory = directory.strip_prefix(base).unwrap_or(directory);
    format!("{}/", directory.display())
}

/// # Errors
/// A place that does not end, or a key that no report can have.
fn fill(text: &str, piece: impl Fn(&str) -> Option<String>) -> Result<String> {
    let keys = Report::keys();
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let (key, after) = after.split_once(" -->").context("a place has no key")?;
        let (old, after) = after
            .split_once(CLOSE)
            .with_context(|| format!("the place {key} does not end"))?;
        ensure!(
            keys.contains(key) || key.starts_with("plot/"),
            "there is a place for {key}, which no report has"
        );
        ensure!(!old.contains(OPEN), "the place {key} does not end");
        // A place within a line stays within it.
        let new = match piece(key) {
            None => old.to_owned(),
            Some(new) if old.starts_with('\n') => format!("\n\n{}\n\n", new.trim()),
            Some(new) => new,
        };
        filled += &format!("{before}{OPEN}{key} -->{new}{CLOSE}");
        rest = after;
    }
    filled += rest;
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::Goal;
    use crate::options::Section;
    use crate::report::tests::{measured, report};

    #[test]
    fn places_are_filled_again_and_again() {
        let mut report = report();
        report.add(measured(Section::Hot, Goal::HotOfInsert, 1.25));
        let fill = |text: &str| fill(text, |key| report.piece(key, "bench/")).unwrap();
        let text = "A <!-- bench:goal/hot-of-insert -->*x*<!-- /bench --> B\n\
                    <!-- bench:plot/hot -->\nold\n<!-- /bench -->\n\
                    <!-- bench:section/read -->\nkept\n<!-- /bench -->\n";
        let filled = fill(text);
        assert!(filled.contains("-->1.250<!-- /bench --> B"), "{filled}");
        assert!(
            filled.contains("\n\n![T](bench/hot.svg)\n\n<!-- /bench"),
            "{filled}"
        );
        assert!(filled.contains("kept"), "{filled}");
        assert_eq!(fill(&filled), filled);
    }

    #[test]
    fn a_wrong_place_is_an_error() {
        let none = |_: &str| None;
        assert!(fill("<!-- bench:goal/x -->1<!-- /bench -->", none).is_err());
        assert!(fill("<!-- bench:goals -->1", none).is_err());
        assert!(
            fill(
                "<!-- bench:goals -->1<!-- bench:about --><!-- /bench -->",
                none
            )
            .is_err()
        );
    }

    #[test]
    fn documents_name_what_there_is() {
        for (document, _) in DOCUMENTS {
            let text = fs::read_to_string(below_root(document)).unwrap();
            assert_eq!(fill(&text, |_| None).unwrap(), text);
            assert!(text.contains(OPEN), "{document}");
        }
    }

    #[test]
    fn links_are_relative_to_their_document() {
        let directory = below_root("docs/bench");
        assert_eq!(relative(&directory, "docs"), "bench/");
        assert_eq!(relative(&directory, "."), "docs/bench/");
        assert_eq!(relative(Path::new("/x"), "."), "/x/");
    }
}
