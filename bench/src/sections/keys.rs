//! Many counters: 10,000 that are equally likely, and a million of which some are popular.

use anyhow::Result;

use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::race::{Entry, Pace, race};
use crate::report::Measured;
use crate::server::Server;

const PEERS: [Peer; 6] = [
    Peer::Counter,
    Peer::Update,
    Peer::Upsert,
    Peer::Slots(10),
    Peer::SummedLog,
    Peer::FoldedLog { indexed: true },
];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut measured = Measured::new(
        Section::Keys,
        format!(
            "{} clients add 1 to a counter that is drawn by lot. The UPDATE has rows for all of them, as \
             has the upsert where it has met them before. Where it is a million, the rows stay from round \
             to round, and each page is written to the WAL as a whole when it is first changed after the \
             checkpoint before the race: that tells against those who change rows in place, on a real \
             server after each checkpoint anew.",
            options.clients
        ),
    );
    for (keys, name, title) in [
        (
            Keys::Uniform,
            "keys-uniform",
            "10,000 counters, all as likely",
        ),
        (
            Keys::Zipf,
            "keys-zipf",
            "a million counters, Zipf-distributed (1.05)",
        ),
    ] {
        let mut server = Server::start(name, options)?;
        let entries = [&PEERS[..], &[Peer::Insert]]
            .concat()
            .into_iter()
            .map(|peer| Entry::new(peer, keys, Batch::One, options.clients))
            .collect::<Vec<_>>();
        let pace = Pace {
            rounds: options.few_rounds(),
            seconds: options.short_seconds(),
        };
        let race = race(&mut server, title, pace, &entries)?;
        measured.plots.push(race.plot(
            name,
            &format!("{title}, {} clients, durable", options.clients),
        ));
        measured.races.push(race);
    }
    Ok(measured)
}
