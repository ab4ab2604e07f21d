//! Databases of other encodings than UTF-8. Names are bytes: they come back as they went in, in each
//! way to read; and every function meets them with an error for users or a right answer.
//!
//! Texts go to and fro in hexadecimal, as the client's own encoding is UTF-8.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::settle;
use counterx_harness::Cluster;
use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::errors::Refusal;
use super::functions::{self, Call};
use super::fuzz;
use super::state::unhex_bytes;
use super::values::{self, Value};
use crate::options::Options;
use crate::report::PartReport;

const DATABASES: &[&str] = &["LATIN1", "SQL_ASCII", "EUC_JP"];

pub(super) fn run(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    for encoding in DATABASES {
        report.step(&format!("a database of encoding {encoding}"), |report| {
            database(cluster, encoding, options, report)
        });
    }
    Ok(())
}

fn database(
    cluster: &Cluster,
    encoding: &str,
    options: &Options,
    report: &mut PartReport,
) -> Result<()> {
    let db = format!("in_{}", encoding.to_lowercase());
    cluster.connect()?.batch_execute(&format!(
        "CREATE DATABASE {db} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    ))?;
    let mut client = cluster.connect_db(&db)?;
    client.batch_execute("CREATE EXTENSION counterx")?;
    client.batch_execute(fuzz::ATTEMPT)?;
    client.batch_execute(&format!(
        "CREATE FUNCTION the(hex text) RETURNS text IMMUTABLE LANGUAGE sql AS
             $$ SELECT convert_from(decode(hex, 'hex'), '{encoding}') $$;
         CREATE FUNCTION hex(name text) RETURNS text IMMUTABLE LANGUAGE sql AS
             $$ SELECT encode(convert_to(name, '{encoding}'), 'hex') $$"
    ))?;
    let mut rng = StdRng::seed_from_u64(options.seed_for(encoding));
    let names = names(encoding, options.size(24, 200), &mut rng);
    round_trip(&mut client, &names)?;
    report.tried("names of odd bytes, read in every way", names.len() as u64);
    let calls = random_calls(
        &mut client,
        encoding,
        &names,
        options.size(60, 400),
        &mut rng,
    )?;
    report.tried("random calls in databases of other encodings", calls);
    Ok(())
}

/// Different names, in hexadecimal.
fn names(encoding: &str, count: usize, rng: &mut StdRng) -> Vec<String> {
    let mut names = std::collections::BTreeSet::new();
    while names.len() < count {
        let length = *[1, 1, 2, 3, 8, 60, 127].choose(rng).unwrap_or(&1);
        let mut name = Vec::new();
        for _ in 0..length {
            match encoding {
                // Two bytes a character: hiragana, and ASCII between them.
                "EUC_JP" if rng.random_ratio(2, 3) => {
                    name.extend([0xA4, rng.random_range(0xA1..=0xF3)]);
                }
                "EUC_JP" => name.push(rng.random_range(1..0x80)),
                _ => name.push(rng.random_range(1..=0xFF_u8)),
            }
        }
        names.insert(
            name.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>(),
        );
    }
    names.into_iter().collect()
}

/// Counts each name in every way that there is, before and after a fold.
fn round_trip(client: &mut Client, names: &[String]) -> Result<()> {
    client.execute(
        "SELECT count(counter_incr(the(hex), 1)) FROM unnest($1::text[]) hex",
        &[&names],
    )?;
    client.execute(
        "SELECT counter_incr_many((SELECT array_agg(the(hex)) FROM unnest($1::text[]) hex),
                                  (SELECT array_agg(1) FROM unnest($1::text[])))",
        &[&names],
    )?;
    client.execute(
        "SELECT counter_incr_many((SELECT jsonb_object_agg(the(hex), 1) FROM unnest($1::text[]) hex))",
        &[&names],
    )?;
    client.execute(
        "SELECT counter_incr_once(the(hex), the(hex)) FROM unnest($1::text[]) hex",
        &[&names],
    )?;
    for round in ["pending", "folded"] {
        for (way, sql) in [
            (
                "counter_list",
                "SELECT hex(name), value FROM counter_list(max_rows => 100000)",
            ),
            ("counters", "SELECT hex(name), value::bigint FROM counters"),
            (
                "counter_top",
                "SELECT hex(name), value FROM counter_top(100000)",
            ),
            (
                "counter_values",
                "SELECT hex(name), value
                   FROM counter_values((SELECT array_agg(the(hex)) FROM unnest($1::text[]) hex))",
            ),
            (
                "counter_value",
                "SELECT hex, counter_value(the(hex)) FROM unnest($1::text[]) hex",
            ),
            (
                "a condition on counters",
                "SELECT hex(c.name), c.value::bigint
                   FROM unnest($1::text[]) hex JOIN counters c ON c.name = the(hex)",
            ),
            (
                "counter_list by prefix",
                "SELECT hex(l.name), l.value FROM unnest($1::text[]) hex,
                        counter_list(the(hex), NULL, 1) l",
            ),
            (
                "tokens",
                "SELECT hex(token), 4::bigint FROM counterx.token WHERE token = name",
            ),
        ] {
            // Not all have an argument.
            let sql = format!("SELECT * FROM ({sql}) q WHERE $1::text[] IS NOT NULL ORDER BY 1");
            let rows = client
                .query(&sql, &[&names])
                .with_context(|| way.to_owned())?;
            let found: Vec<(String, i64)> =
                rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            let expected: Vec<(String, i64)> = names.iter().map(|name| (name.clone(), 4)).collect();
            ensure!(
                found == expected,
                "{way}, {round}: {found:?}, expected {expected:?}"
            );
        }
        settle(client)?;
    }
    Ok(())
}

fn random_calls(
    client: &mut Client,
    encoding: &str,
    names: &[String],
    calls: u64,
    rng: &mut StdRng,
) -> Result<u64> {
    let functions = functions::all(client)?;
    client.batch_execute("SELECT counter_type_create('b', min => 0)")?;
    for _ in 0..calls {
        let function = functions.choose(rng).context("no functions")?;
        let mut call = Call::random(function, rng);
        for (value, argument) in call.arguments.iter_mut().zip(&function.arguments) {
            let name = names.choose(rng).map_or("62", String::as_str);
            // Bounded ones as well.
            let prefix = if rng.random_ratio(1, 4) {
                "'b:' || "
            } else {
                ""
            };
            match (argument.type_name.as_str(), &value) {
                // Some have no such character.
                ("text" | "text[]" | "jsonb", Value::Null | Value::Refused(_)) => {}
                ("text", _) => *value = Value::Other(format!("{prefix}the('{name}')")),
                ("text[]", _) => *value = Value::Other(format!("ARRAY[{prefix}the('{name}')]")),
                ("jsonb", _) => {
                    let key = ["'description'", "'min'", "the('%')"]
                        .choose(rng)
                        .unwrap_or(&"'x'");
                    let key = key.replace('%', name);
                    *value = Value::Other(format!("jsonb_build_object({key}, the('{name}'))"));
                }
                _ => {}
            }
        }
        let sql = format!("SELECT * FROM {}", call.sql());
        let row = client
            .query_one(
                &format!(
                    "SELECT code, hex(message), hex(detail), hex(hint) FROM attempt({})",
                    values::quote(&sql)
                ),
                &[],
            )
            .with_context(|| format!("its error is no text of {encoding}: {sql}"))?;
        let Some(code) = row.get::<_, Option<String>>(0) else {
            continue;
        };
        let text = |index| -> Result<Option<String>> {
            let hex: Option<String> = row.get(index);
            let bytes = unhex_bytes(&hex.unwrap_or_default())?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(Some(text).filter(|text| !text.is_empty()))
        };
        let message = text(1)?.unwrap_or_default();
        let ours = message.contains("counter") && !message.contains("function");
        let refusal = Refusal {
            code,
            message,
            detail: text(2)?,
            hint: text(3)?,
            ours,
        };
        refusal.check().context(sql.clone())?;
        ensure!(!ours || refusal.message.is_ascii(), "{sql}: {refusal:?}");
    }
    Ok(calls)
}
