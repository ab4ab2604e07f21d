//! All the loads at once, in one database.

use anyhow::{Result, anyhow};
use postgres::{Client, Config};

use crate::bounded::{BoundedLoad, bounded_under_watch, prepare_bounded};
use crate::changes::{changes_schema, changes_under_watch};
use crate::control::Control;
use crate::load::{Load, under_watch};

/// Plain increments, changes of every kind and bounded counters beside each other: so many clients
/// of each, and so many transactions of each client.
#[derive(Clone, Copy, Debug)]
pub struct Mixed {
    /// Connections of each of the three loads.
    pub clients: u64,
    /// Transactions of each connection.
    pub transactions: u64,
    /// Whether connections are lost on purpose.
    pub survives: bool,
    /// The seed.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MixedEnd {
    /// Transactions that their clients know the end of.
    pub transactions: u64,
    /// Those that lost their connection.
    pub lost: u64,
    /// Looks of the checkers.
    pub checks: u64,
}

impl std::ops::AddAssign for MixedEnd {
    fn add_assign(&mut self, other: Self) {
        self.transactions += other.transactions;
        self.lost += other.lost;
        self.checks += other.checks;
    }
}

/// Makes what the loads need, in a database of [`crate::create_database`].
///
/// # Errors
/// Those of the server.
pub fn prepare_mixed(client: &mut Client) -> Result<()> {
    client.batch_execute(changes_schema())?;
    prepare_bounded(client)
}

/// Runs the three loads with their checkers, and `meanwhile` in the calling thread.
///
/// # Errors
/// The first thing that went wrong.
pub fn mixed_under_watch(
    config: &Config,
    mixed: Mixed,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<MixedEnd> {
    let plain = Load {
        clients: mixed.clients,
        transactions: mixed.transactions,
        survives: mixed.survives,
        serializable: true,
        seed: mixed.seed,
        ..Load::default()
    };
    let changes = Load {
        names: 6,
        // The plain load would resolve what this one has prepared.
        two_phase: true,
        seed: mixed.seed.wrapping_add(1),
        ..plain.clone()
    };
    let bounded = BoundedLoad {
        clients: mixed.clients,
        transactions: mixed.transactions,
        survives: mixed.survives,
        holds: true,
        seed: mixed.seed.wrapping_add(2),
    };
    std::thread::scope(|scope| {
        let changes = scope.spawn(move || changes_under_watch(config, &changes, |_| Ok(())));
        let bounded = scope.spawn(move || bounded_under_watch(config, bounded, |_| Ok(())));
        let plain = under_watch(config, &plain, meanwhile);
        let changes = changes.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
        let bounded = bounded.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
        let (plain, changes, bounded) = (plain?, changes?, bounded?);
        let count = |number: &std::sync::atomic::AtomicU64| {
            number.load(std::sync::atomic::Ordering::Relaxed)
        };
        Ok(MixedEnd {
            transactions: plain.outcome.done
                + plain.outcome.refused
                + changes.outcome.done
                + changes.outcome.refused
                + count(&bounded.done)
                + count(&bounded.refused),
            lost: plain.outcome.unknown + changes.outcome.unknown + count(&bounded.lost),
            checks: plain.checks + changes.checks + count(&bounded.looks),
        })
    })
}
