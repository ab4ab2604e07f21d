//! What is aimed at: the headline of the report.

use serde::{Deserialize, Serialize};

use crate::options::Section;
use crate::stats::{Series, Unit};

/// Which way a goal lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

use Wanted::{AtLeast, AtMost};

/// One line of the headline table, in its order.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    clap::ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    HotOfInsert,
    HotOfUpdate,
    HotOfSlots,
    HotOfFolded,
    AsyncOfInsert,
    ThousandInLoop,
    ThousandStatements,
    MillionOfInsert,
    ReadOfLookup,
    BusyReadOfLookup,
    BusyMedianOfLookup,
    HitsReadOfLookup,
    WalOfInsert,
    FoldCpuHot,
    FoldCpuSpread,
    SnapshotIncrements,
    SnapshotReads,
    MillionCounters,
    BoundedOfUpdate,
    BoundedOfPlain,
    ListsOfTable,
    HitsOfInsert,
    HitsOfMessage,
    HitsOfCounter,
    HitsOfUpdate,
    HitsWalOfInsert,
    SilentHitsOfSelect,
    SilentHitsOfRedis,
    ManyHitsOfInsert,
    TryHitsOfUpdate,
    HitsLatency,
    InsertBesideHits,
    SlowHitsOfCounter,
    TrackedInsert,
    TrackedInsertOfTrigger,
    TrackedUpdate,
    TrackedRows,
    TrackedMillions,
    TrackedMemory,
    AttachWait,
    HistoryIncrements,
    HistoryFold,
    HistoryAt,
    HistoryBuckets,
    WindowOfBounded,
    WindowsRemoved,
    StreamIncrements,
    StreamFold,
    StreamFoldHot,
    StreamHundred,
    StreamHint,
    StreamNext,
}

impl Goal {
    /// What is measured, the section that measures it, and how much is wanted.
    fn line(self) -> (&'static str, Section, Wanted) {
        match self {
            Self::HotOfInsert => (
                "hot counter, 32 clients, durable: times the rate of INSERT into a table without index",
                Section::Hot,
                AtLeast(1.0),
            ),
            Self::HotOfUpdate => (
                "the same, times the rate of UPDATE of one row",
                Section::Hot,
                AtLeast(12.0),
            ),
            Self::HotOfSlots => (
                "the same, times the rate of 100 slot rows",
                Section::Hot,
                AtLeast(2.0),
            ),
            Self::HotOfFolded => (
                "the same, times the rate of an indexed log folded by DELETE",
                Section::Hot,
                AtLeast(1.3),
            ),
            Self::AsyncOfInsert => (
                "hot counter, 8 clients, asynchronous commit: times the rate of that INSERT",
                Section::Clients,
                AtLeast(0.95),
            ),
            Self::ThousandInLoop => (
                "a thousand increments of one counter in one transaction, in a loop on the server: times \
                 the rate of UPDATE",
                Section::Batch,
                AtLeast(5.0),
            ),
            Self::ThousandStatements => (
                "the same, as a thousand statements of each of 8 clients",
                Section::Batch,
                AtLeast(5.0),
            ),
            Self::MillionOfInsert => (
                "a million increments in one statement: times the speed of INSERT ... SELECT of as many rows",
                Section::Bulk,
                AtLeast(3.0),
            ),
            Self::ReadOfLookup => (
                "point read, nothing pending, median: times that of a look-up by primary key",
                Section::Read,
                AtMost(1.2),
            ),
            Self::BusyReadOfLookup => (
                "point read of the hot counter beside its 32 writers, p99: times that of the look-up \
                 beside the same writers",
                Section::Read,
                AtMost(3.0),
            ),
            Self::BusyMedianOfLookup => ("the same, median", Section::Read, AtMost(4.0)),
            Self::HitsReadOfLookup => (
                "point read of the hot counter beside 32 that hit it, median: times that of the look-up \
                 beside the same",
                Section::Read,
                AtMost(3.0),
            ),
            Self::WalOfInsert => (
                "WAL bytes for each durable increment, the fold's included: times those of the INSERT",
                Section::Hot,
                AtMost(1.5),
            ),
            Self::FoldCpuHot => (
                "the fold's share of a processor at 20,000 increments/s of ten hot counters",
                Section::Fold,
                AtMost(0.05),
            ),
            Self::FoldCpuSpread => (
                "the same, of 10,000 counters by lot",
                Section::Fold,
                AtMost(0.05),
            ),
            Self::SnapshotIncrements => (
                "a snapshot that is open for ten minutes: increments at its end, times those without",
                Section::Snapshot,
                AtLeast(0.95),
            ),
            Self::SnapshotReads => (
                "the same, latency of reads of the hot counter",
                Section::Snapshot,
                AtMost(1.1),
            ),
            Self::MillionCounters => (
                "time of an increment with 1,000,000 counters, any of them: times that with 1",
                Section::Growth,
                AtMost(1.1),
            ),
            Self::BoundedOfUpdate => (
                "bounded hot counter: times the rate of the conditional UPDATE",
                Section::Bounded,
                AtLeast(5.0),
            ),
            Self::BoundedOfPlain => (
                "bounded hot counter: times the rate of the plain one",
                Section::Bounded,
                AtLeast(0.6),
            ),
            Self::ListsOfTable => (
                "lists, ranks and sums of a million counters, the worst of them: times the latency of a table",
                Section::Lists,
                AtMost(2.0),
            ),
            Self::HitsOfInsert => (
                "counter_hit, hot counter, 32 clients, durable: times the rate of that INSERT",
                Section::Hits,
                AtLeast(1.35),
            ),
            Self::HitsOfMessage => (
                "the same, times the rate of pg_logical_emit_message",
                Section::Hits,
                AtLeast(1.3),
            ),
            Self::HitsOfCounter => (
                "the same, times the rate of counter_incr",
                Section::Hits,
                AtLeast(1.6),
            ),
            Self::HitsOfUpdate => (
                "the same, times the rate of UPDATE of one row",
                Section::Hits,
                AtLeast(9.0),
            ),
            Self::HitsWalOfInsert => (
                "WAL bytes for each of these hits, the fold's included: times those of the INSERT",
                Section::Hits,
                AtMost(0.15),
            ),
            Self::SilentHitsOfSelect => (
                "counter_hit with wait => false, 32 clients: times the rate of SELECT 1",
                Section::Hits,
                AtLeast(0.9),
            ),
            Self::SilentHitsOfRedis => (
                "the same, times the rate of Redis INCR with appendfsync everysec, each through its own \
                 benchmark client",
                Section::Redis,
                AtLeast(0.75),
            ),
            Self::ManyHitsOfInsert => (
                "counter_hit of 10,000 counters by lot, 32 clients: times the rate of the INSERT",
                Section::Hits,
                AtLeast(1.1),
            ),
            Self::TryHitsOfUpdate => (
                "counter_try_hit of a bounded hot counter: times the rate of the conditional UPDATE",
                Section::Hits,
                AtLeast(9.0),
            ),
            Self::HitsLatency => (
                "counter_hit, 32 clients, p99: times that of counter_incr",
                Section::Hits,
                AtMost(0.5),
            ),
            Self::InsertBesideHits => (
                "16 clients of INSERT beside 16 of counter_hit: times the rate beside counter_incr",
                Section::Hits,
                AtLeast(1.2),
            ),
            Self::SlowHitsOfCounter => (
                "16 clients of counter_hit beside 16 of INSERT, flushes of 2 ms: times counter_incr there",
                Section::Hits,
                AtLeast(0.9),
            ),
            Self::TrackedInsert => (
                "INSERT of 100,000 rows of 1,000 groups into a tracked table: times the time of a table that \
                 is not tracked",
                Section::Tracks,
                AtMost(1.2),
            ),
            Self::TrackedInsertOfTrigger => (
                "the same, times the time of a row trigger in PL/pgSQL that upserts a count",
                Section::Tracks,
                AtMost(0.1),
            ),
            Self::TrackedUpdate => (
                "UPDATE of another column than those of the key: times the processor time of a table that is \
                 not tracked",
                Section::Tracks,
                AtMost(1.45),
            ),
            Self::TrackedRows => (
                "INSERT of one row, 32 clients, one group, durable: times the rate of a table that is not tracked",
                Section::Tracks,
                AtLeast(0.85),
            ),
            Self::TrackedMillions => (
                "10,000,000 rows in one INSERT: times the time of a table that is not tracked",
                Section::Tracks,
                AtMost(1.3),
            ),
            Self::TrackedMemory => (
                "the same, memory for each row beyond that without tracking",
                Section::Tracks,
                AtMost(16.0),
            ),
            Self::AttachWait => (
                "a table of 10,000,000 rows is tracked under 2,000 writes/s: the longest that a write takes",
                Section::Tracks,
                AtMost(0.5),
            ),
            Self::HistoryIncrements => (
                "counter_incr of a type whose minutes are kept, 32 clients, durable: times the rate of a type \
                 without history",
                Section::History,
                AtLeast(0.98),
            ),
            Self::HistoryFold => (
                "the worker's time for a delta of ten hot counters whose minutes are kept: times that without \
                 history",
                Section::History,
                AtMost(1.8),
            ),
            Self::HistoryAt => (
                "processor time of counter_at of a counter that has a day of minutes: times that of counter_value",
                Section::History,
                AtMost(1.5),
            ),
            Self::HistoryBuckets => (
                "processor time of counter_buckets of 24 hours",
                Section::History,
                AtMost(1000.0),
            ),
            Self::WindowOfBounded => (
                "counter_try_incr of a hot counter that begins anew with each window, 32 clients, durable: times the \
                 rate of a bounded one without windows",
                Section::Windows,
                AtLeast(0.8),
            ),
            Self::WindowsRemoved => (
                "1,000,000 counters of ended windows are removed: the longest that a call takes meanwhile",
                Section::Windows,
                AtMost(1.0),
            ),
            Self::StreamIncrements => (
                "counter_incr of a counter of a stream, 32 clients, durable: times the rate of a counter of none",
                Section::Streams,
                AtLeast(0.98),
            ),
            Self::StreamFold => (
                "the worker's time for a delta of 10,000 counters by lot, all of a stream: times that without streams",
                Section::Streams,
                AtMost(1.5),
            ),
            Self::StreamFoldHot => ("the same, ten hot counters", Section::Streams, AtMost(1.5)),
            Self::StreamHundred => (
                "the same, 10,000 counters by lot, all of a hundred streams: times that with one stream",
                Section::Streams,
                AtMost(1.1),
            ),
            Self::StreamHint => (
                "from a commit to its notification, p99, less compaction_interval",
                Section::Streams,
                AtMost(50_000.0),
            ),
            Self::StreamNext => (
                "counter_stream_next of 1,000 rows, median",
                Section::Streams,
                AtMost(5000.0),
            ),
        }
    }

    pub(crate) fn what(self) -> &'static str {
        self.line().0
    }

    pub(crate) fn section(self) -> Section {
        self.line().1
    }

    pub(crate) fn wanted(self) -> Wanted {
        self.line().2
    }

    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::FoldCpuHot | Self::FoldCpuSpread => Unit::Share,
            Self::TrackedMemory => Unit::Bytes,
            Self::AttachWait | Self::WindowsRemoved => Unit::Seconds,
            Self::HistoryBuckets | Self::StreamHint | Self::StreamNext => Unit::Microseconds,
            _ => Unit::Ratio,
        }
    }
}

/// A goal, and what came of it. The median counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) goal: Goal,
    pub(crate) measured: Series,
}

impl Reached {
    pub(crate) fn met(&self) -> bool {
        match self.goal.wanted() {
            AtLeast(bound) => self.measured.median >= bound,
            AtMost(bound) => self.measured.median <= bound,
        }
    }
}

impl Wanted {
    pub(crate) fn format(self, unit: Unit) -> String {
        let (word, bound) = match self {
            AtLeast(bound) => ("at least", bound),
            AtMost(bound) => ("at most", bound),
        };
        match unit {
            Unit::Ratio => format!("{word} {bound}"),
            unit => format!("{word} {}", unit.format(bound)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn a_goal_is_met_or_it_is_not() {
        for (goal, value, met) in [
            (Goal::AsyncOfInsert, 0.95, true),
            (Goal::AsyncOfInsert, 0.94, false),
            (Goal::WalOfInsert, 1.5, true),
            (Goal::WalOfInsert, 1.6, false),
        ] {
            let measured = Series::new("x", Unit::Ratio, vec![value]).unwrap();
            assert_eq!(Reached { goal, measured }.met(), met, "{goal:?} {value}");
        }
    }

    #[test]
    fn every_goal_says_what_is_wanted() {
        for goal in Goal::value_variants() {
            assert!(!goal.what().is_empty());
            assert!(goal.wanted().format(goal.unit()).starts_with("at "));
        }
        for (goal, wanted) in [
            (Goal::FoldCpuHot, "at most 5.0 %"),
            (Goal::TrackedMemory, "at most 16 B"),
            (Goal::AttachWait, "at most 0.500 s"),
            (Goal::TrackedInsert, "at most 1.2"),
            (Goal::HistoryBuckets, "at most 1,000 µs"),
        ] {
            assert_eq!(goal.wanted().format(goal.unit()), wanted);
        }
    }
}
