//! A hot counter with a bound, and what types cost those who have none.

use anyhow::{Context, Result};

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::{Pgbench, Protocol};
use crate::race::{Entry, Pace, race};
use crate::report::Measured;
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// More than any run can take.
const STOCK: i64 = 1_000_000_000_000;

/// Types in the second half.
const TYPES: u32 = 20;

/// Names with a colon, so that each call looks for a type.
const CALLS: &str =
    "SELECT count(counter_incr('bulk:' || i % 1000)) FROM generate_series(1, 1000000) AS i;";

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("bounded", options)?;
    server.execute(&format!(
        "SELECT counter_type_create('stock', min => 0);
         SELECT counter_set('stock:hot', {STOCK});
         CREATE TABLE stock (id integer PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO stock VALUES (1, {STOCK});"
    ))?;
    let clients = options.clients;
    let take = Entry::custom(
        "counter_try_incr(-1), bounded",
        // Put together, as pgbench would take what follows a colon for a variable.
        "SELECT counter_try_incr('stock:' || 'hot', -1);",
        &format!("SELECT {STOCK} - counter_value('stock:hot')"),
        clients,
    );
    let mut update = Entry::custom(
        "UPDATE ... WHERE n >= 1",
        "UPDATE stock SET n = n - 1 WHERE id = 1 AND n >= 1;",
        &format!("SELECT {STOCK} - n FROM stock WHERE id = 1"),
        clients,
    );
    "VACUUM FULL stock".clone_into(&mut update.reset);
    let plain = Entry::new(Peer::Counter, Keys::Hot, Batch::One, clients);
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let title = format!("a bounded hot counter, {clients} clients, durable");
    let race = race(&mut server, &title, pace, &[take, plain, update])?;
    let [_, plain, update] = &race.rows[..] else {
        unreachable!("as many rows as entries")
    };
    let mut measured = Measured::new(
        Section::Bounded,
        format!(
            "{clients} clients take 1 of a stock that does not run out, each time in a transaction of its \
             own, with `pgbench -M prepared`; and, for comparison, add 1 to a counter without bounds. \
             Then one client: a million calls for names without a type in one statement, in a new \
             connection each time, in a database without types and with {TYPES} of them."
        ),
    );
    measured.goal(Goal::BoundedOfUpdate, update.ratio.clone());
    measured.goal(Goal::BoundedOfPlain, plain.ratio.clone());
    measured.races.push(race);

    let [without, with] = with_and_without_types(&mut server, options)
        .context("plain calls where there are types")?;
    let what = "a million plain calls, with types of without";
    measured.ratios.push(with.ratio_to(what, &without)?);
    measured.figures = vec![without, with];
    Ok(measured)
}

fn with_and_without_types(server: &mut Server, options: &Options) -> Result<[Series; 2]> {
    server.execute("SELECT counter_type_drop('stock')")?;
    let mut seconds = [Vec::new(), Vec::new()];
    for round in 0..options.rounds() {
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
                "    round {}: a million plain calls, {} types: {}",
                round + 1,
                if turn == 1 { TYPES } else { 0 },
                Unit::Seconds.format(took)
            );
            seconds[turn].push(took);
            if turn == 1 {
                server.execute("SELECT counter_type_drop(name) FROM counter_types")?;
            }
            server.fold()?;
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
