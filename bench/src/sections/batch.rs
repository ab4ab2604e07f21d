//! Many increments of one counter in a transaction, and before an answer is awaited.

use anyhow::Result;

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::race::{Entry, Pace, race};
use crate::report::Measured;
use crate::server::Server;

const TEN: u32 = 10;
const THOUSAND: u32 = 1000;
const PIPELINE: u32 = 16;
const FEW_CLIENTS: u32 = 8;

/// The same statement a thousand times, without a round trip in between.
const LOOPS: &str = "
    CREATE FUNCTION loop_counter() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN FOR i IN 1..1000 LOOP PERFORM counter_incr('hot'); END LOOP; END $$;
    CREATE FUNCTION loop_update() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN FOR i IN 1..1000 LOOP UPDATE updated SET n = n + 1 WHERE name = 'hot'; END LOOP; END $$;
    CREATE FUNCTION loop_insert() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN FOR i IN 1..1000 LOOP INSERT INTO plain_log VALUES ('hot', 1); END LOOP; END $$;";

const PEERS: [Peer; 4] = [Peer::Counter, Peer::Insert, Peer::Update, Peer::Slots(100)];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("batch", options)?;
    let mut measured = Measured::new(
        Section::Batch,
        "One hot counter, durable. *Statements* are those of a client in a transaction, each answered \
         before the next is sent. A *pipeline* of libpq sends 16 before it waits for answers; to the \
         server that is one transaction. *In a loop* is a function in PL/pgSQL that runs the same \
         statement a thousand times. Rates are those of increments, not of transactions.",
    );
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let few = Pace {
        rounds: options.few_rounds(),
        ..pace
    };
    let title = |what: &str, clients| format!("{what}, {clients} clients");
    let all = |batch, clients| -> Vec<Entry> {
        let entry = |&peer| Entry::new(peer, Keys::Hot, batch, clients);
        PEERS.iter().map(entry).collect()
    };

    let ten = title("ten statements a transaction", options.clients);
    let entries = all(Batch::Statements(TEN), options.clients);
    measured.races.push(race(&mut server, &ten, few, &entries)?);

    let pipeline = title("pipeline of 16", options.clients);
    let entries = all(Batch::Pipeline(PIPELINE), options.clients);
    let pipelined = race(&mut server, &pipeline, few, &entries)?;
    measured.races.push(pipelined);

    let thousand = title("a thousand statements a transaction", FEW_CLIENTS);
    let entries = all(Batch::Statements(THOUSAND), FEW_CLIENTS);
    let statements = race(&mut server, &thousand, pace, &entries)?;
    measured.goal(Goal::ThousandStatements, statements.times(Peer::Update)?);
    measured.races.push(statements);

    server.execute(LOOPS)?;
    let in_loop = |peer: Peer, function: &str| {
        let mut entry = Entry::new(peer, Keys::Hot, Batch::One, 1);
        entry.script = format!("SELECT {function}();");
        entry.increments = THOUSAND;
        entry
    };
    let mut at_once = Entry::new(Peer::Counter, Keys::Hot, Batch::One, 1)
        .named("counter_incr('hot', 1000), once");
    at_once.script = "SELECT counter_incr('hot', 1000);".to_owned();
    at_once.increments = THOUSAND;
    let entries = [
        in_loop(Peer::Counter, "loop_counter"),
        in_loop(Peer::Insert, "loop_insert"),
        in_loop(Peer::Update, "loop_update"),
        at_once,
    ];
    let looped = race(
        &mut server,
        "a thousand in a loop, 1 client",
        pace,
        &entries,
    )?;
    measured.goal(Goal::ThousandInLoop, looped.times(Peer::Update)?);
    measured.races.push(looped);
    Ok(measured)
}
