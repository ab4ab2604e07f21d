//! Lists, ranks and sums of a million counters.

use std::ops::Range;

use anyhow::{Result, ensure};

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::pgbench::{Latency, Pgbench, Protocol};
use crate::report::{Latencies, Measured};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

const COUNTERS: u32 = 1_000_000;

/// Counters that change in each round, twice.
const CHANGED: u32 = 10_000;

/// Both are read by one process. Nobody folds, unless told to.
const SETTINGS: &[(&str, &str)] = &[
    ("max_parallel_workers_per_gather", "0"),
    ("counterx.compaction", "off"),
];

/// Names are `page:1000000` to `page:1999999`: prefixes of 4 digits have 1,000 counters, those of 2
/// digits 100,000. The tables get the rows in the order in which the counters are stored.
const FILL: [&str; 5] = [
    "SELECT count(counter_incr('page:' || 1000000 + i, (random() * 1000000)::bigint))
     FROM generate_series(0, 999999) AS i",
    // The first one folds, the second one empties the logs.
    "SELECT counterx.compact()",
    "SELECT counterx.compact()",
    "CREATE TABLE plain (name text COLLATE \"C\" PRIMARY KEY, value bigint NOT NULL);
     INSERT INTO plain SELECT * FROM counters;
     CREATE TABLE indexed (name text COLLATE \"C\" PRIMARY KEY, value bigint NOT NULL);
     INSERT INTO indexed SELECT * FROM counters;
     CREATE INDEX ON indexed (value DESC, name)",
    "CREATE TABLE asked (size integer, id integer, names text[], PRIMARY KEY (size, id));
     ALTER TABLE asked ALTER COLUMN names SET STORAGE EXTERNAL;
     INSERT INTO asked
     SELECT size, id, array_agg('page:' || 1000000 + (random() * 999999)::integer)
     FROM unnest(ARRAY[10, 1000]) AS size, generate_series(1, 100) AS id,
          LATERAL generate_series(1, size)
     GROUP BY size, id",
];

/// The same question to the counters and to a table.
struct Question {
    what: &'static str,
    /// Which part of the names, or lists of names, `:p` is drawn from.
    drawn: Range<u32>,
    counters: &'static str,
    /// `plain` stands for either table.
    table: &'static str,
    /// Transactions for each second of a slice, of both together: some answers take a
    /// thousand times as long as others.
    runs: u32,
}

/// Which of both answers comes is drawn by lot: of fewer, one might never come.
const FEWEST_RUNS: u32 = 24;

/// The same for ranks by the value index, none of which takes long.
const INDEXED_RUNS: u32 = 100;

/// A rank takes the value index where there is one.
const RANKS: [Question; 3] = [
    Question {
        what: "first 10 of all",
        drawn: 0..1,
        counters: "SELECT name, value FROM counter_top(10)",
        table: "SELECT name, value FROM plain ORDER BY value DESC, name LIMIT 10",
        runs: 4,
    },
    Question {
        what: "first 10 of 1,000",
        drawn: 1000..2000,
        counters: "SELECT name, value FROM counter_top(10, 'page:' || :p::text)",
        table: "SELECT name, value FROM plain \
                WHERE name >= 'page:' || :p::text AND name < 'page:' || :p::text || '~' \
                ORDER BY value DESC, name LIMIT 10",
        runs: 100,
    },
    Question {
        what: "first 10 of 100,000",
        drawn: 10..20,
        counters: "SELECT name, value FROM counter_top(10, 'page:' || :p::text)",
        table: "SELECT name, value FROM plain \
                WHERE name >= 'page:' || :p::text AND name < 'page:' || :p::text || '~' \
                ORDER BY value DESC, name LIMIT 10",
        runs: 10,
    },
];

const OTHERS: [Question; 6] = [
    Question {
        what: "page of 100, from a prefix on",
        drawn: 1000..2000,
        counters: "SELECT name, value FROM counter_list('page:' || :p::text)",
        table: "SELECT name, value FROM plain \
                WHERE name >= 'page:' || :p::text AND name < 'page:' || :p::text || '~' \
                ORDER BY name LIMIT 100",
        runs: 200,
    },
    Question {
        what: "page of 100, after a name",
        drawn: 1_000_000..1_999_800,
        counters: "SELECT name, value FROM counter_list(after => 'page:' || :p::text)",
        table: "SELECT name, value FROM plain WHERE name > 'page:' || :p::text ORDER BY name LIMIT 100",
        runs: 200,
    },
    Question {
        what: "10 names",
        drawn: 1..101,
        counters: "SELECT name, value FROM \
                   counter_values((SELECT names FROM asked WHERE size = 10 AND id = :p::integer))",
        table: "SELECT name, value FROM plain WHERE name = \
                ANY ((SELECT names FROM asked WHERE size = 10 AND id = :p::integer)::text[])",
        runs: 200,
    },
    Question {
        what: "1,000 names",
        drawn: 1..101,
        counters: "SELECT name, value FROM \
                   counter_values((SELECT names FROM asked WHERE size = 1000 AND id = :p::integer))",
        table: "SELECT name, value FROM plain WHERE name = \
                ANY ((SELECT names FROM asked WHERE size = 1000 AND id = :p::integer)::text[])",
        runs: 40,
    },
    Question {
        what: "sum of 1,000",
        drawn: 1000..2000,
        counters: "SELECT counter_sum('page:' || :p::text)",
        table: "SELECT sum(value) FROM plain \
                WHERE name >= 'page:' || :p::text AND name < 'page:' || :p::text || '~'",
        runs: 100,
    },
    Question {
        what: "sum of all",
        drawn: 0..1,
        counters: "SELECT counter_sum()",
        table: "SELECT sum(value) FROM plain",
        runs: 4,
    },
];

/// With or without the value index, and with or without pending deltas.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    value_index: bool,
    pending: bool,
}

const STATES: [State; 4] = [
    State {
        value_index: false,
        pending: false,
    },
    State {
        value_index: false,
        pending: true,
    },
    State {
        value_index: true,
        pending: false,
    },
    State {
        value_index: true,
        pending: true,
    },
];

impl State {
    fn table(self) -> &'static str {
        if self.value_index { "indexed" } else { "plain" }
    }

    fn name(self) -> String {
        let index = if self.value_index {
            "value index"
        } else {
            "no value index"
        };
        let pending = if self.pending { ", 10,000 pending" } else { "" };
        format!("{index}{pending}")
    }
}

impl Question {
    fn of_table(&self, state: State) -> String {
        self.table
            .replace("FROM plain", &format!("FROM {}", state.table()))
    }
}

/// A question in a state, and both answers' latencies in each round.
struct Asked {
    question: &'static Question,
    state: State,
    counters: Vec<Latency>,
    table: Vec<Latency>,
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start_with("lists", options, SETTINGS)?;
    for statement in FILL {
        server.execute(statement)?;
    }
    server.check("counters", "SELECT count(*) FROM counters", COUNTERS.into())?;

    let mut asked: Vec<Asked> = STATES
        .into_iter()
        .flat_map(|state| {
            let others = OTHERS.iter().filter(move |_| !state.value_index);
            RANKS.iter().chain(others).map(move |question| Asked {
                question,
                state,
                counters: Vec::new(),
                table: Vec::new(),
            })
        })
        .collect();
    // Seconds that folds took without the value index, and with it.
    let mut folds = [Vec::new(), Vec::new()];
    for round in 0..options.few_rounds() {
        for turn in turns(round, 2) {
            let value_index = turn == 1;
            if value_index {
                server.execute("SELECT counterx.create_value_index()")?;
            }
            // Not within a transaction block.
            for table in ["counterx.total", "plain", "indexed"] {
                server.execute(&format!("VACUUM (ANALYZE) {table}"))?;
            }
            server.execute("CHECKPOINT")?;
            for pending in [false, true] {
                if pending {
                    let step = COUNTERS / CHANGED;
                    change(&mut server, (round * 2 + turn as u32) % step, step)?;
                }
                let state = State {
                    value_index,
                    pending,
                };
                let of_state: Vec<&mut Asked> =
                    asked.iter_mut().filter(|one| one.state == state).collect();
                for one in of_state {
                    one.ask(&mut server, round, options)?;
                }
            }
            folds[turn].push(fold(&mut server, round, &STATES[turn * 2])?);
            if value_index {
                server.execute("SELECT counterx.drop_value_index()")?;
            }
        }
    }
    report(&asked, folds)
}

/// Changes every `step`th counter and row, from the `first` on.
fn change(server: &mut Server, first: u32, step: u32) -> Result<()> {
    let names = format!(
        "SELECT 'page:' || i AS name FROM generate_series({}, 1999999, {step}) AS i",
        1_000_000 + first
    );
    server.execute(&format!(
        "SELECT count(counter_incr(name, 7)) FROM ({names}) AS names;
         UPDATE plain SET value = value + 7 FROM ({names}) AS names WHERE names.name = plain.name;
         UPDATE indexed SET value = value + 7 FROM ({names}) AS names
         WHERE names.name = indexed.name;"
    ))?;
    let pending = server.pending()?;
    ensure!(
        pending == i64::from(CHANGED),
        "{pending} deltas are pending, not {CHANGED}"
    );
    Ok(())
}

/// Folds what is pending; returns the seconds.
fn fold(server: &mut Server, round: u32, state: &State) -> Result<f64> {
    let took = Pgbench::new(&server.cluster, 1, "SELECT counterx.compact();")
        .protocol(Protocol::Simple)
        .run_once()?;
    println!(
        "    round {}: fold, {}: {}",
        round + 1,
        state.name(),
        Unit::Seconds.format(took)
    );
    server.check("pending deltas", "SELECT counterx.compact()", 0)?;
    Ok(took)
}

impl Asked {
    fn name(&self) -> String {
        format!("{}, {}", self.question.what, self.state.name())
    }

    /// One turn: both in one session, by lot. Before that, the answers must be the same.
    fn ask(&mut self, server: &mut Server, round: u32, options: &Options) -> Result<()> {
        let Question {
            drawn,
            counters,
            runs,
            ..
        } = self.question;
        let table = self.question.of_table(self.state);
        let different = format!(
            "WITH a AS ({counters}), b AS ({table})
             SELECT count(*) FROM ((TABLE a EXCEPT TABLE b)
                                   UNION ALL (TABLE b EXCEPT TABLE a)) AS different"
        );
        let p = drawn.start + (drawn.len() as u32 - 1) * (round + 1) / (options.few_rounds() + 1);
        server.check(&self.name(), &different.replace(":p", &p.to_string()), 0)?;

        let runs = if self.state.value_index {
            INDEXED_RUNS
        } else {
            *runs
        };
        let script = |sql: &str| {
            format!(
                "\\set p random({}, {})\n{};",
                drawn.start,
                drawn.end - 1,
                sql
            )
        };
        let log = Pgbench::new(&server.cluster, 1, &script(counters))
            .script(&script(&table))
            .run_logged_times((runs * options.seconds()).max(FEWEST_RUNS))?;
        let latency = |number| {
            let of_one = log.iter().filter(|logged| logged.script == number);
            Latency::of(of_one.map(|logged| logged.microseconds))
        };
        let (counters, table) = (latency(0)?, latency(1)?);
        println!(
            "    round {}: {}: counters {}, table {}",
            round + 1,
            self.name(),
            Unit::Microseconds.format(counters.p50),
            Unit::Microseconds.format(table.p50)
        );
        self.counters.push(counters);
        self.table.push(table);
        Ok(())
    }
}

fn report(asked: &[Asked], folds: [Vec<f64>; 2]) -> Result<Measured> {
    let mut measured = Measured::new(
        Section::Lists,
        "A million folded counters, beside the same names and values in a table \
         `(name text COLLATE \"C\" PRIMARY KEY, value bigint)`, with or without an index on \
         (value DESC, name) as the counters have their value index or not. One client, prepared \
         statements; both answers in one session, in an order drawn by lot, about random prefixes, \
         places or names, and checked to be the same. Ratios are of median latencies. No parallel \
         query, no worker, and shared buffers of 1 GB, which hold everything. *Pending* are deltas \
         of 10,000 counters, spread over all names, that are not folded; the rows of the same names \
         were updated. A fold is that of these 10,000 by `counterx.compact()`.",
    );
    let mut worst: Option<Series> = None;
    for one in asked {
        let counters = Latencies::new(&format!("counters: {}", one.name()), &one.counters)?;
        let table = Latencies::new(&format!("table: {}", one.name()), &one.table)?;
        let what = format!("{}, times the table", one.name());
        let ratio = counters.p50.ratio_to(what, &table.p50)?;
        // The worst of those that have nothing pending.
        let is_worse = |worst: &Series| ratio.median > worst.median;
        if !one.state.pending && worst.as_ref().is_none_or(is_worse) {
            worst = Some(ratio.clone());
        }
        measured.ratios.push(ratio);
        measured.latencies.extend([counters, table]);
    }
    if let Some(worst) = worst {
        measured.goal(Goal::ListsOfTable, worst);
    }
    let [without, with] = folds;
    let without = Series::new(
        "fold of 10,000 counters, no value index",
        Unit::Seconds,
        without,
    )?;
    let with = Series::new("fold of 10,000 counters, value index", Unit::Seconds, with)?;
    let what = "fold with the value index, times that without";
    measured.ratios.push(with.ratio_to(what, &without)?);
    measured.figures = vec![without, with];
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_a_state_is_asked() {
        let [without, .., with] = STATES;
        for question in RANKS.iter().chain(&OTHERS) {
            assert!(question.of_table(without).contains("FROM plain"));
            assert!(question.of_table(with).contains("FROM indexed"));
            assert!(!question.of_table(with).contains("plain"));
        }
    }
}
