//! The SQL of the documents: taking it out of a page, and running it as psql does.
//!
//! A ```text block right after an ```sql block is the output of that block's last statement, as psql prints
//! it. Where that is an error, the last statement has to fail, with this error; no other statement may.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, ensure};
use counterx_harness::Cluster;
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

/// A block of SQL.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its text.
    pub sql: String,
    /// What the page says that it prints.
    pub output: Option<String>,
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

    /// Holds what it has printed against what the page says. True: the page says something.
    ///
    /// # Errors
    /// They differ.
    pub fn check(&self, printed: &str) -> Result<bool> {
        let Some(expected) = &self.output else {
            return Ok(false);
        };
        ensure!(
            printed.ends_with(expected),
            "this block\n{}\nprinted\n{printed}\nand the document says\n{expected}",
            self.sql
        );
        Ok(true)
    }
}

/// The root of the checkout.
#[must_use]
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The text of a page of `docs`.
///
/// # Errors
/// It cannot be read.
pub fn page(name: &str) -> Result<String> {
    fs::read_to_string(checkout().join("docs").join(name)).context(name.to_owned())
}

/// The blocks of SQL of a page.
#[must_use]
pub fn blocks(markdown: &str) -> Vec<Block> {
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

/// Runs blocks one after the other in one psql session, and returns what each has printed.
///
/// # Errors
/// A statement has failed that should not.
pub fn run_blocks(cluster: &Cluster, database: &str, blocks: &[Block]) -> Result<Vec<String>> {
    // Between each two.
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
