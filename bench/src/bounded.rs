//! Section F: a hot counter with a bound, and what types cost those who have none.

use anyhow::Result;

use crate::contenders::{COUNTER, Contender};
use crate::hot::{Race, race};
use crate::options::{Options, Section};
use crate::pgbench::{Pgbench, Protocol};
use crate::report::{Measured, Target, Wanted};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// More than any run can take.
const STOCK: i64 = 1_000_000_000_000;

/// The name is put together, as pgbench would take what follows a colon for a variable.
const TAKE: Contender = Contender {
    name: "counter_try_incr(-1), bounded",
    script: "SELECT counter_try_incr('stock:' || 'hot', -1);",
    total: "SELECT 1000000000000 - counter_value('stock:hot')",
};

const UPDATE: Contender = Contender {
    name: "UPDATE ... WHERE n >= 1",
    script: "UPDATE stock SET n = n - 1 WHERE id = 1 AND n >= 1;",
    total: "SELECT 1000000000000 - n FROM stock WHERE id = 1",
};

const CONTENDERS: [Contender; 3] = [TAKE, COUNTER, UPDATE];

const OF_UPDATE: f64 = 5.0;
const OF_COUNTER: f64 = 0.6;

/// Types in the second half.
const TYPES: u32 = 20;

/// Names with a colon, so that each call looks for a type.
const CALLS: &str =
    "SELECT count(counter_incr('bulk:' || i % 1000)) FROM generate_series(1, 1000000) AS i;";

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("bench-bounded", options.clients)?;
    server.execute(&format!(
        "SELECT counter_type_create('stock', min => 0);
         SELECT counter_set('stock:hot', {STOCK});
         CREATE TABLE stock (id integer PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO stock VALUES (1, {STOCK});"
    ))?;
    let Race {
        mut figures,
        backlogs,
    } = race(&mut server, options, &CONTENDERS, "VACUUM FULL stock")?;
    let [take, counter, update] = &figures[..] else {
        unreachable!("as many figures as contenders")
    };
    let of_update = take.ratio_to("bounded, times the rate of the conditional UPDATE", update)?;
    let of_counter = take.ratio_to("bounded, of the rate of the plain counter", counter)?;
    figures.push(backlogs);

    let [without, with] = with_and_without_types(&mut server, options)?;
    let types = with.ratio_to("a million plain calls, with types of without", &without)?;
    figures.extend([without, with]);

    let mut measured = Measured::new(
        Section::F,
        format!(
            "{} clients take 1 of a stock that does not run out, each time in a transaction of its \
             own, with `pgbench -M prepared`. Then one client: a million calls for names without \
             a type in one statement, in a new connection each time, in a database without types \
             and with {TYPES} of them.",
            options.clients
        ),
    );
    measured.ratios = vec![of_update.clone(), of_counter.clone(), types];
    measured.targets = vec![
        Target::new(of_update, Wanted::AtLeast(OF_UPDATE)),
        Target::new(of_counter, Wanted::AtLeast(OF_COUNTER)),
    ];
    measured.figures = figures;
    Ok(measured)
}

fn with_and_without_types(server: &mut Server, options: &Options) -> Result<[Series; 2]> {
    server.execute("SELECT counter_type_drop('stock')")?;
    let mut seconds = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        for turn in turns(round, 2) {
            if turn == 1 {
                server.execute(&format!(
                    "SELECT counter_type_create('type' || i, min => 0) FROM generate_series(1, {TYPES}) i"
                ))?;
            }
            let took = Pgbench::new(&server.cluster, 1, CALLS)
                .protocol(Protocol::Simple)
                .run_once()?;
            println!(
                "  round {}: a million plain calls, {} types: {}",
                round + 1,
                if turn == 1 { TYPES } else { 0 },
                Unit::Seconds.format(took)
            );
            seconds[turn].push(took);
            if turn == 1 {
                server.execute("SELECT counter_type_drop(name) FROM counter_types")?;
            }
            server.settle()?;
        }
    }
    let [without, with] = seconds;
    Ok([
        Series::new("a million plain calls, no types", Unit::Seconds, without)?,
        Series::new(
            format!("a million plain calls, {TYPES} types"),
            Unit::Seconds,
            with,
        )?,
    ])
}
