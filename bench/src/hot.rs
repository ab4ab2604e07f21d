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
    let Race {
        mut figures,
        backlogs,
    } = race(&mut server, options, &CONTENDERS, RESET)?;
    let [counter, insert, update, slots] = &figures[..] else {
        unreachable!("as many figures as contenders")
    };
    let of_insert = counter.ratio_to("hot counter, of the rate of INSERT without index", insert)?;
    let of_update = counter.ratio_to("hot counter, times the rate of UPDATE of one row", update)?;
    let of_slots = counter.ratio_to("hot counter, times the rate of slot rows", slots)?;

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
    figures.push(backlogs);
    measured.figures = figures;
    Ok(measured)
}

/// What came of a race.
pub(crate) struct Race {
    /// The rates, in the order of the contenders.
    pub(crate) figures: Vec<Series>,
    /// What the first one has left to fold after each slice.
    pub(crate) backlogs: Series,
}

/// All clients, one contender after the other, in rounds.
pub(crate) fn race(
    server: &mut Server,
    options: &Options,
    contenders: &[Contender],
    reset: &str,
) -> Result<Race> {
    server.execute(reset)?;
    for contender in contenders {
        slice(server, contender, options.clients, WARM_UP)?;
        server.settle()?;
    }
    server.execute("CHECKPOINT")?;

    let mut rates = vec![Vec::new(); contenders.len()];
    let mut backlogs = Vec::new();
    for round in 0..options.rounds {
        server.execute(reset)?;
        for turn in turns(round, contenders.len()) {
            let contender = &contenders[turn];
            let outcome = slice(server, contender, options.clients, options.seconds)?;
            println!(
                "  round {}: {}: {}",
                round + 1,
                contender.name,
                Unit::PerSecond.format(outcome.rate)
            );
            rates[turn].push(outcome.rate);
            let backlog = server.settle()?;
            if turn == 0 {
                backlogs.push(backlog as f64);
            }
        }
    }
    let figures = contenders
        .iter()
        .zip(rates)
        .map(|(contender, rates)| Series::new(contender.name, Unit::PerSecond, rates))
        .collect::<Result<Vec<_>>>()?;
    Ok(Race {
        figures,
        backlogs: Series::new("deltas pending after a slice", Unit::Count, backlogs)?,
    })
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
