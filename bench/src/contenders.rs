//! The ways to count that are compared, each as plain as its users write it.

/// One way to count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// pgbench's script of one increment by one.
    pub(crate) script: &'static str,
    /// How many there were, as bigint: all that counting is for.
    pub(crate) total: &'static str,
}

pub(crate) const COUNTER: Contender = Contender {
    name: "counter_incr",
    script: "SELECT counter_incr('hot');",
    total: "SELECT counter_value('hot')",
};

pub(crate) const INSERT: Contender = Contender {
    name: "INSERT, no index",
    script: "INSERT INTO plain_log (name, delta) VALUES ('hot', 1);",
    total: "SELECT count(*) FROM plain_log",
};

pub(crate) const UPDATE: Contender = Contender {
    name: "UPDATE of one row",
    script: "UPDATE one_row SET n = n + 1 WHERE name = 'hot';",
    total: "SELECT n FROM one_row WHERE name = 'hot'",
};

/// As many slots as make two of the clients meet seldom.
pub(crate) const SLOTS: Contender = Contender {
    name: "100 slot rows",
    script: "\\set slot random(0, 99)\n\
             INSERT INTO slots (id, slot, n) VALUES (1, :slot, 1) \
             ON CONFLICT (id, slot) DO UPDATE SET n = slots.n + 1;",
    total: "SELECT coalesce(sum(n), 0)::bigint FROM slots WHERE id = 1",
};

/// The tables of the others.
pub(crate) const CREATE: &str = "
    CREATE TABLE plain_log (name text NOT NULL, delta bigint NOT NULL);
    CREATE TABLE one_row (name text PRIMARY KEY, n bigint NOT NULL);
    CREATE TABLE slots (id integer, slot integer, n bigint NOT NULL, PRIMARY KEY (id, slot));";

/// Gives the others as good a start as they ever have. The counter goes on.
pub(crate) const RESET: &str = "
    TRUNCATE plain_log, one_row, slots;
    INSERT INTO one_row VALUES ('hot', 0);";
