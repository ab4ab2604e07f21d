//! The independent count, and its comparison with the counters.

use std::io::copy;

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use postgres::Client;

use crate::events;
use crate::group;

const PLAIN_TABLE_SQL: &str = "
    CREATE SCHEMA demo;
    CREATE TABLE demo.departures (
        departure timestamp, carrier text, flight integer, origin text, dest text,
        dep_delay integer, arr_delay integer)";

const COPY_SQL: &str = "COPY demo.departures FROM STDIN (FORMAT csv, HEADER)";

/// Every counter beside its count, all in one snapshot; what one side lacks is NULL. The values go
/// through text as numeric has no bounds.
const COMPARE_SQL: &str = "
    WITH counted(name, value) AS (
        SELECT 'flights', count(*) FROM demo.departures
        UNION ALL
        SELECT 'flights:origin:' || origin, count(*) FROM demo.departures GROUP BY origin
        UNION ALL
        SELECT 'flights:carrier:' || carrier, count(*) FROM demo.departures GROUP BY carrier
        UNION ALL
        SELECT 'flights:cancelled', count(*) FROM demo.departures WHERE dep_delay IS NULL
        UNION ALL
        SELECT 'flights:delayed', count(*) FROM demo.departures WHERE dep_delay > 15)
    SELECT name, counted.value::text, counters.value::text, counter_value(name)::text
    FROM counted FULL JOIN counters USING (name)
    ORDER BY name COLLATE \"C\"";

const SIZES_SQL: &str = "
    SELECT (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
            WHERE relnamespace = 'counterx'::regnamespace AND relkind = 'r' AND relname ~ '^log_'),
           pg_total_relation_size('counterx.total'),
           (SELECT coalesce(sum(pending_deltas), 0)::bigint FROM counterx.lanes)";

/// Loads the file by COPY; returns how many rows it had.
pub(crate) fn load_plain_table(client: &mut Client) -> Result<u64> {
    client.batch_execute(PLAIN_TABLE_SQL)?;
    let mut writer = client.copy_in(COPY_SQL)?;
    copy(&mut events::text()?, &mut writer).context("could not copy the file")?;
    writer.finish().context("could not copy the file")
}

/// One counter: what SQL counted, and what the two ways to read it say.
struct Line {
    name: String,
    counted: Option<String>,
    viewed: Option<String>,
    read: Option<String>,
}

impl Line {
    fn is_equal(&self) -> bool {
        self.counted.is_some() && self.counted == self.viewed && self.counted == self.read
    }
}

/// The counters beside their counts.
pub(crate) struct Comparison {
    lines: Vec<Line>,
}

/// Compares each counter with its count, and finds those that are missing or too many.
pub(crate) fn compare(client: &mut Client) -> Result<Comparison> {
    let rows = client
        .query(COMPARE_SQL, &[])
        .context("could not compare the counters")?;
    let lines = rows
        .iter()
        .map(|row| Line {
            name: row.get(0),
            counted: row.get(1),
            viewed: row.get(2),
            read: row.get(3),
        })
        .collect();
    Ok(Comparison { lines })
}

impl Comparison {
    /// How many counters differ, are missing or too many.
    pub(crate) fn differences(&self) -> usize {
        self.lines.iter().filter(|line| !line.is_equal()).count()
    }

    /// All of it, for people.
    pub(crate) fn table(&self) -> Table {
        let mut table = new_table(&["counter", "SQL count", "counters", "counter_value()", ""]);
        for line in &self.lines {
            let value = |text: &Option<String>| right(text.as_deref().unwrap_or("missing"));
            table.add_row(vec![
                Cell::new(&line.name),
                value(&line.counted),
                value(&line.viewed),
                value(&line.read),
                Cell::new(if line.is_equal() { "=" } else { "DIFFERS" }),
            ]);
        }
        table
    }
}

/// How much space the parts take, indexes included, and how much is waiting.
pub(crate) struct Sizes {
    log_bytes: u64,
    total_bytes: u64,
    pending: u64,
}

impl Sizes {
    /// Those of now.
    pub(crate) fn measure(client: &mut Client) -> Result<Self> {
        let row = client
            .query_one(SIZES_SQL, &[])
            .context("could not measure the tables")?;
        let size = |column: usize| -> Result<u64> {
            u64::try_from(row.get::<_, i64>(column)).context("a size is negative")
        };
        Ok(Self {
            log_bytes: size(0)?,
            total_bytes: size(1)?,
            pending: size(2)?,
        })
    }
}

/// The sizes around a compaction, for people.
pub(crate) fn sizes_table(before: &Sizes, after: &Sizes) -> Table {
    let mut table = new_table(&["", "before compaction", "after"]);
    let kilobytes = |bytes: u64| format!("{} kB", group(bytes / 1024));
    for (what, before, after) in [
        (
            "logs",
            kilobytes(before.log_bytes),
            kilobytes(after.log_bytes),
        ),
        (
            "totals",
            kilobytes(before.total_bytes),
            kilobytes(after.total_bytes),
        ),
        (
            "pending deltas",
            group(before.pending),
            group(after.pending),
        ),
    ] {
        table.add_row(vec![Cell::new(what), right(&before), right(&after)]);
    }
    table
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(values: [Option<&str>; 3]) -> Line {
        let [counted, viewed, read] = values.map(|value| value.map(str::to_owned));
        Line {
            name: "x".to_owned(),
            counted,
            viewed,
            read,
        }
    }

    #[test]
    fn whatever_is_not_equal_differs() {
        let lines = vec![
            line([Some("1"), Some("1"), Some("1")]),
            line([Some("1"), Some("1"), Some("2")]),
            line([Some("1"), Some("2"), Some("1")]),
            line([Some("0"), None, Some("0")]),
            line([None, Some("1"), Some("1")]),
            line([None, None, None]),
        ];
        let comparison = Comparison { lines };
        assert_eq!(comparison.differences(), 5);
        assert_eq!(comparison.table().to_string().matches("DIFFERS").count(), 5);
    }
}
