//! Section A: one hot counter.

use anyhow::Result;

use crate::contenders::{COUNTER, CREATE, Contender, INSERT, RESET, SLOTS, UPDATE};
use crate::options::{Options, Section};
use crate::pgbench::{Outcome, Pgbench};
use crate::report::{Measured, Target, Wanted};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

const CONTENDERS: [Contender; 4] = [COUNTER, INSERT, UPDATE, SLOTS];

/// Of the rate of an INSERT, which is the least that writing down an increment can cost.
const OF_INSERT: f64 = 0.95;
const OF_UPDATE: f64 = 10.0;

/// Seconds of each before it counts: files grow, and catalogs are read, for the first time.
const WARM_UP: u32 = 1;

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("bench-hot", options.clients)?;
    server.execute(CREATE)?;
    server.execute(RESET)?;
    for contender in &CONTENDERS {
        slice(&mut server, contender, options.clients, WARM_UP)?;
        server.settle()?;
    }
    server.execute("CHECKPOINT")?;

    let mut rates = vec![Vec::new(); CONTENDERS.len()];
    let mut backlogs = Vec::new();
    for round in 0..options.rounds {
        server.execute(RESET)?;
        for turn in turns(round, CONTENDERS.len()) {
            let contender = &CONTENDERS[turn];
            let outcome = slice(&mut server, contender, options.clients, options.seconds)?;
            println!(
                "  round {}: {}: {}",
                round + 1,
                contender.name,
                Unit::PerSecond.format(outcome.rate)
            );
            rates[turn].push(outcome.rate);
            let backlog = server.settle()?;
            if contender.name == COUNTER.name {
                backlogs.push(backlog as f64);
            }
        }
    }

    let figures = CONTENDERS
        .iter()
        .zip(rates)
        .map(|(contender, rates)| Series::new(contender.name, Unit::PerSecond, rates))
        .collect::<Result<Vec<_>>>()?;
    let [counter, insert, update, slots] = &figures[..] else {
        unreachable!("as many figures as contenders")
    };
    let of_insert = counter.ratio_to("hot counter, of the rate of INSERT without index", insert)?;
    let of_update = counter.ratio_to("hot counter, times the rate of UPDATE of one row", update)?;
    let of_slots = counter.ratio_to("hot counter, times the rate of slot rows", slots)?;
    let backlog = Series::new("deltas pending after a slice", Unit::Count, backlogs)?;

    let mut measured = Measured::new(
        Section::A,
        format!(
            "{} clients add 1, each time in a transaction of its own, with `pgbench -M prepared`. \
             The worker folds meanwhile. The others' tables are emptied before each round; there \
             is a checkpoint before the first one only.",
            options.clients
        ),
    );
    measured.ratios = vec![of_insert.clone(), of_update.clone(), of_slots];
    measured.targets = vec![
        Target::new(of_insert, Wanted::AtLeast(OF_INSERT)),
        Target::new(of_update, Wanted::AtLeast(OF_UPDATE)),
    ];
    measured.figures = figures;
    measured.figures.push(backlog);
    Ok(measured)
}

/// One turn, and whether all of it has arrived.
pub(crate) fn slice(
    server: &mut Server,
    contender: &Contender,
    clients: u32,
    seconds: u32,
) -> Result<Outcome> {
    let before: i64 = server.one(contender.total)?;
    let outcome = Pgbench::new(&server.cluster, clients, contender.script).run(seconds)?;
    server.check(
        contender.name,
        contender.total,
        before + outcome.transactions,
    )?;
    Ok(outcome)
}
