//! One hot counter, from 1 to 128 clients, durable and not.

use anyhow::Result;

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::plot::{Line, Plot};
use crate::race::{Entry, Pace, Race, race};
use crate::report::Measured;
use crate::server::Server;

const CLIENTS: [u32; 4] = [1, 8, 32, 128];

/// The goal's number of clients.
const EIGHT: u32 = 8;

const DURABLE: [Peer; 5] = [
    Peer::Counter,
    Peer::Insert,
    Peer::Update,
    Peer::Slots(100),
    Peer::FoldedLog { indexed: true },
];

const ASYNCHRONOUS: [Peer; 3] = [Peer::Counter, Peer::Insert, Peer::Update];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("clients", options)?;
    let mut measured = Measured::new(
        Section::Clients,
        "As in section hot. *Asynchronous* is `synchronous_commit = off` in the clients' sessions, for \
         all alike: a crash may then lose the last moments of what was acknowledged.",
    );
    for (durable, peers) in [(true, &DURABLE[..]), (false, &ASYNCHRONOUS[..])] {
        let kind = if durable { "durable" } else { "asynchronous" };
        let mut races = Vec::new();
        for clients in CLIENTS {
            let entries: Vec<Entry> = peers
                .iter()
                .map(|&peer| {
                    let entry = Entry::new(peer, Keys::Hot, Batch::One, clients);
                    if durable { entry } else { entry.asynchronous() }
                })
                .collect();
            let is_goal = !durable && clients == EIGHT;
            let pace = Pace {
                rounds: if is_goal {
                    options.rounds()
                } else {
                    options.few_rounds()
                },
                seconds: if is_goal {
                    options.seconds()
                } else {
                    options.short_seconds()
                },
            };
            let title = format!("{clients} clients, {kind}").replace("1 clients,", "1 client,");
            let race = race(&mut server, &title, pace, &entries)?;
            if is_goal {
                measured.goal(Goal::AsyncOfInsert, race.times(Peer::Insert)?);
            }
            races.push(race);
        }
        let title = format!("one hot counter, {kind}");
        measured
            .plots
            .push(plot(&format!("clients-{kind}"), &title, &races));
        measured.races.extend(races);
    }
    Ok(measured)
}

fn plot(name: &str, title: &str, races: &[Race]) -> Plot {
    let lines = races[0].rows.iter().enumerate().map(|(number, row)| {
        let rates = races.iter().map(|race| race.rows[number].rate.median);
        let points = rates.enumerate().map(|(place, rate)| (place as f64, rate));
        Line::new(&row.name, points.collect())
    });
    let places = CLIENTS.map(|clients| clients.to_string()).to_vec();
    Plot::over(
        name,
        title,
        "increments per second",
        "clients",
        places,
        lines.collect(),
    )
}
