//! One hot counter: everybody who counts, and what nobody can be cheaper than.

use anyhow::{Context, Result};

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::race::{Entry, Pace, race};
use crate::report::Measured;
use crate::server::Server;

const PEERS: [Peer; 14] = [
    Peer::Counter,
    Peer::Update,
    Peer::Upsert,
    Peer::Slots(10),
    Peer::Slots(100),
    Peer::SummedLog,
    Peer::FoldedLog { indexed: true },
    Peer::FoldedLog { indexed: false },
    Peer::RowTrigger,
    Peer::StatementTrigger,
    Peer::MaterializedView,
    Peer::Insert,
    Peer::Message,
    Peer::SelectOne,
];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("hot", options)?;
    let entries = PEERS.map(|peer| Entry::new(peer, Keys::Hot, Batch::One, options.clients));
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let title = format!("one hot counter, {} clients, durable", options.clients);
    let race = race(&mut server, &title, pace, &entries)?;

    let mut measured = Measured::new(
        Section::Hot,
        format!(
            "{} clients add 1 to one counter, each time in a transaction of its own, with `pgbench -M \
             prepared`. The worker folds meanwhile; the logs are folded, and the materialized view is \
             refreshed, by a loop of psql with a pause of a second. The triggers count the rows that are \
             inserted into a table without index. The others' tables are emptied before each round; \
             there is a checkpoint before the first one only. WAL bytes are those of a whole turn, with \
             what folds it, divided by its increments. The INSERT into a table without index, \
             `pg_logical_emit_message`, which writes a record into the WAL and nothing else, and `SELECT \
             1` answer no question about a counter: they are the floor.",
            options.clients
        ),
    );
    for (goal, peer) in [
        (Goal::HotOfInsert, Peer::Insert),
        (Goal::HotOfUpdate, Peer::Update),
        (Goal::HotOfSlots, Peer::Slots(100)),
        (Goal::HotOfFolded, Peer::FoldedLog { indexed: true }),
    ] {
        measured.goal(goal, race.times(peer)?);
    }
    let wal = |peer: Peer| {
        let row = race.row(&peer.name())?;
        row.wal_bytes.as_ref().context("a turn has counted nothing")
    };
    let of_insert = wal(Peer::Counter)?.ratio_to("WAL bytes", wal(Peer::Insert)?)?;
    measured.goal(Goal::WalOfInsert, of_insert);
    measured.plots.push(race.plot("hot", &title));
    measured.races.push(race);
    Ok(measured)
}
