//! Every SQL block of README.md, docs/, contrib/ and examples/ runs, and prints what the document says it prints; and
//! every link from one of these files to another leads somewhere.
//!
//! A file's blocks run one after the other in a database of their own: see `pages.rs` for their form.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{blocks, checkout, run_blocks};
use counterx_harness::Cluster;
use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Pages whose blocks run on several servers, in `tests/several_servers.rs`.
const ELSEWHERE: &[&str] = &["docs/recipes/several-servers.md"];

fn documents() -> Result<Vec<PathBuf>> {
    let root = checkout().canonicalize()?;
    let mut files = [
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "contrib/monitoring/README.md",
        "examples/live/README.md",
    ]
    .map(|name| root.join(name))
    .to_vec();
    let mut directories = vec![root.join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The targets of a file's links within the project.
fn links(markdown: &str) -> Vec<String> {
    Parser::new(markdown)
        .filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. }) if !dest_url.contains("://") => {
                Some(dest_url.to_string())
            }
            _ => None,
        })
        .collect()
}

/// What links to a file's headings can name, as GitHub and its kind make it of their text.
fn anchors(markdown: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    let mut heading: Option<String> = None;
    for event in Parser::new(markdown) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let text = heading.take().unwrap_or_default().to_lowercase();
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
                let anchor = text.chars().filter(kept).collect::<String>();
                anchors.insert(anchor.replace(' ', "-"));
            }
            _ => {}
        }
    }
    anchors
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut found = 0;
    let mut headings: HashMap<PathBuf, HashSet<String>> = HashMap::new();
    let mut broken = Vec::new();
    for file in documents()? {
        for link in links(&fs::read_to_string(&file)?) {
            found += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                file.clone()
            } else {
                file.parent().context("a directory")?.join(path)
            };
            let Ok(target) = target.canonicalize() else {
                broken.push(format!("{}: no file {link}", file.display()));
                continue;
            };
            if anchor.is_empty() {
                continue;
            }
            if !headings.contains_key(&target) {
                headings.insert(target.clone(), anchors(&fs::read_to_string(&target)?));
            }
            if !headings[&target].contains(anchor) {
                broken.push(format!("{}: no heading {link}", file.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    ensure!(found > 0, "no document has a link: is the parser broken?");
    Ok(())
}

/// The name that the documents use where they have to name their database.
const DATABASE: &str = "shop";

fn runs_elsewhere(file: &Path) -> bool {
    ELSEWHERE.iter().any(|page| file.ends_with(page))
}

#[test]
fn every_sql_block_runs_and_prints_what_it_says() -> Result<()> {
    let cluster = Cluster::builder().name("docs").start()?;
    let mut with_output = 0;
    let mut wrong = Vec::new();
    for file in documents()? {
        let blocks = blocks(&fs::read_to_string(&file)?);
        if blocks.is_empty() || runs_elsewhere(&file) {
            continue;
        }
        cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        if !blocks
            .iter()
            .any(|block| block.sql.contains("CREATE EXTENSION counterx"))
        {
            cluster.psql(DATABASE, "CREATE EXTENSION counterx")?;
        }
        let outputs =
            run_blocks(&cluster, DATABASE, &blocks).with_context(|| file.display().to_string())?;
        for (block, output) in blocks.iter().zip(&outputs) {
            match block.check(output) {
                Ok(shown) => with_output += u32::from(shown),
                Err(error) => wrong.push(format!("{}: {error:#}", file.display())),
            }
        }
        // Its worker may be busy still: it goes by itself.
        cluster.psql("postgres", &format!("DROP DATABASE {DATABASE}"))?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(
        with_output > 0,
        "no document shows an output: is the parser broken?"
    );
    Ok(())
}
