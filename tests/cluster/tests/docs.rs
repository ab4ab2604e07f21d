//! Every SQL block of README.md and docs/ runs, and prints what the document says it prints; and
//! every link from one of these files to another leads somewhere.
//!
//! A file's blocks run one after the other in a database of their own. A ```text block right after
//! an ```sql block is the output of that block's last statement, as psql prints it. Where that is
//! an error, the last statement has to fail, with this error; no other statement may.

use anyhow::{Context, Result, ensure};
use counterx_harness::Cluster;
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

struct Block {
    sql: String,
    output: Option<String>,
}

impl Block {
    fn has_to_fail(&self) -> bool {
        let output = self.output.as_deref();
        output.is_some_and(|output| output.starts_with("ERROR:"))
    }

    /// What psql is given.
    fn script(&self) -> String {
        if self.has_to_fail() {
            format!(
                "\\set ON_ERROR_STOP 0\n{}\n\\set ON_ERROR_STOP 1\n",
                self.sql
            )
        } else {
            format!("{}\n", self.sql)
        }
    }
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut language: Option<String> = None;
    let mut after_sql = false;
    for event in Parser::new(markdown) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                language = Some(info.to_string());
            }
            Event::End(TagEnd::CodeBlock) => {
                after_sql = language.as_deref() == Some("sql");
                language = None;
            }
            Event::Text(text) => match language.as_deref() {
                Some("sql") => blocks.push(Block {
                    sql: text.to_string(),
                    output: None,
                }),
                Some("text") if after_sql => {
                    if let Some(block) = blocks.last_mut() {
                        block.output = Some(text.to_string());
                    }
                }
                _ => {}
            },
            Event::Start(_) => after_sql = false,
            _ => {}
        }
    }
    blocks
}

fn documents() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = vec![root.join("README.md")];
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

/// The blocks of one file in one psql session; a marker line between each two.
fn run(cluster: &Cluster, database: &str, blocks: &[Block]) -> Result<Vec<String>> {
    const MARK: &str = "-- next block --";
    // Errors come in their place among the results, as on a terminal.
    let (mut reader, writer) = std::io::pipe()?;
    let mut psql = cluster
        .tool("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database])
        .stdin(Stdio::piped())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    let script: String = blocks
        .iter()
        .map(|block| format!("{}\\echo {MARK}\n", block.script()))
        .collect();
    let mut stdin = psql.stdin.take().context("stdin")?;
    let writing = thread::spawn(move || stdin.write_all(script.as_bytes()));
    let mut output = String::new();
    reader.read_to_string(&mut output)?;
    let status = psql.wait()?;
    // It fails when psql has stopped at an error, of which more is known here.
    let written = writing.join();
    ensure!(status.success(), "psql: {output}");
    written.expect("the thread does not panic")?;
    Ok(output
        .split(&format!("{MARK}\n"))
        .map(str::to_owned)
        .collect())
}

/// The targets of a file's links to other files.
fn links(markdown: &str) -> Vec<String> {
    Parser::new(markdown)
        .filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. }) if !dest_url.contains("://") => {
                let file = dest_url.split('#').next().unwrap_or_default();
                (!file.is_empty()).then(|| file.to_owned())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn every_link_to_a_file_leads_somewhere() -> Result<()> {
    let mut found = 0;
    for file in documents()? {
        for link in links(&fs::read_to_string(&file)?) {
            found += 1;
            let target = file.parent().context("a directory")?.join(&link);
            ensure!(target.exists(), "{}: no file {link}", file.display());
        }
    }
    ensure!(found > 0, "no document has a link: is the parser broken?");
    Ok(())
}

/// The name that the documents use where they have to name their database.
const DATABASE: &str = "shop";

#[test]
fn every_sql_block_runs_and_prints_what_it_says() -> Result<()> {
    let cluster = Cluster::builder().name("docs").start()?;
    let mut with_output = 0;
    for file in documents()? {
        let blocks = blocks(&fs::read_to_string(&file)?);
        if blocks.is_empty() {
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
            run(&cluster, DATABASE, &blocks).with_context(|| file.display().to_string())?;
        for (block, output) in blocks.iter().zip(&outputs) {
            if let Some(expected) = &block.output {
                with_output += 1;
                ensure!(
                    output.ends_with(expected),
                    "{}: this block\n{}\nprinted\n{output}\nand the document says\n{expected}",
                    file.display(),
                    block.sql
                );
            }
        }
        // Its worker may be busy still: it goes by itself.
        cluster.psql("postgres", &format!("DROP DATABASE {DATABASE}"))?;
    }
    ensure!(
        with_output > 0,
        "no document shows an output: is the parser broken?"
    );
    Ok(())
}
