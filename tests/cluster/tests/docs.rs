//! Every SQL block of README.md and docs/ runs, and prints what the document says it prints.
//!
//! A file's blocks run one after the other in a database of their own. A ```text block right after
//! an ```sql block is the output of that block's last statement, as psql prints it.

use anyhow::{Context, Result, ensure};
use counterx_harness::Cluster;
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

struct Block {
    sql: String,
    output: Option<String>,
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
    for entry in fs::read_dir(root.join("docs")).context("docs/")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The blocks of one file in one psql session; a marker line between each two.
fn run(cluster: &Cluster, database: &str, blocks: &[Block]) -> Result<Vec<String>> {
    const MARK: &str = "-- next block --";
    let mut psql = cluster
        .tool("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let script: String = blocks
        .iter()
        .map(|block| format!("{}\n\\echo {MARK}\n", block.sql))
        .collect();
    psql.stdin
        .take()
        .context("stdin")?
        .write_all(script.as_bytes())?;
    let result = psql.wait_with_output()?;
    let errors = String::from_utf8_lossy(&result.stderr);
    ensure!(result.status.success(), "psql: {errors}");
    let output = String::from_utf8(result.stdout)?;
    Ok(output
        .split(&format!("{MARK}\n"))
        .map(str::to_owned)
        .collect())
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
