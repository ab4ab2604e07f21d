//! The ways to count that are compared, each as plain as its users write it.
//!
//! All of them know a counter by its name, a text of the same bytes. What they insert or update is
//! one row in one statement; tables have a primary key where the way needs one, and no index where
//! it does not.

/// Counters of [`Keys::Uniform`] and [`Keys::Mixed`].
pub(crate) const MANY: u32 = 10_000;

/// One way to count, or something that a way to count cannot be cheaper than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Counter,
    /// By itself, with others' in one commit.
    Hit,
    /// The least that writing down an increment can cost, if it is to be a row.
    Insert,
    Update,
    Upsert,
    Slots(u32),
    /// A log with an index, added up when it is read.
    SummedLog,
    /// A log that a job empties each second, with or without an index for those who read it.
    FoldedLog {
        indexed: bool,
    },
    RowTrigger,
    StatementTrigger,
    /// A log, and a view of its sums that a job makes anew each second.
    MaterializedView,
    /// The cheapest durable write there is: a record in the WAL, and nothing else.
    Message,
    /// A round trip.
    SelectOne,
}

use Peer::{
    Counter, FoldedLog, Hit, Insert, MaterializedView, Message, RowTrigger, SelectOne, Slots,
    StatementTrigger, SummedLog, Update, Upsert,
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// One.
    Hot,
    /// One of [`MANY`], all as likely.
    Uniform,
    /// One of a million; some of them often.
    Zipf,
    /// One of [`MANY`], and each second time the same.
    Mixed,
}

/// How many increments a transaction makes, and how they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    One,
    /// In a transaction, one after the other.
    Statements(u32),
    /// Before an answer is awaited. To the server that is one transaction.
    Pipeline(u32),
}

impl Batch {
    pub(crate) fn size(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Statements(size) | Self::Pipeline(size) => size,
        }
    }
}

impl Keys {
    /// pgbench's draw of `:k`.
    fn draw(self) -> &'static str {
        match self {
            Self::Hot => "",
            Self::Uniform => "\\set k random(1, 10000)\n",
            Self::Zipf => "\\set k random_zipfian(1, 1000000, 1.05)\n",
            // Those that are not positive become 1.
            Self::Mixed => "\\set k greatest(1, random(-9999, 10000))\n",
        }
    }

    /// The name, in SQL.
    fn name(self) -> &'static str {
        match self {
            Self::Hot => "'hot'",
            _ => "('page:' || :k::text)",
        }
    }

    /// Counters that rows are made for, where there must be some.
    fn rows(self) -> u32 {
        match self {
            Self::Hot => 1,
            Self::Uniform | Self::Mixed => MANY,
            Self::Zipf => 1_000_000,
        }
    }

    fn fill(self, table: &str) -> String {
        match self {
            Self::Hot => format!("INSERT INTO {table} VALUES ('hot', 0);"),
            _ => format!(
                "INSERT INTO {table} SELECT 'page:' || i, 0 FROM generate_series(1, {}) AS i;",
                self.rows()
            ),
        }
    }
}

impl Peer {
    pub(crate) fn name(self) -> String {
        match self {
            Counter => "counter_incr".to_owned(),
            Hit => "counter_hit".to_owned(),
            Insert => "INSERT, no index".to_owned(),
            Update => "UPDATE of a row".to_owned(),
            Upsert => "upsert of a row".to_owned(),
            Slots(count) => format!("{count} slot rows"),
            SummedLog => "log with index, SUM".to_owned(),
            FoldedLog { indexed: true } => "log with index, folded by DELETE".to_owned(),
            FoldedLog { indexed: false } => "log, folded by DELETE".to_owned(),
            RowTrigger => "AFTER trigger, each row".to_owned(),
            StatementTrigger => "AFTER trigger, each statement".to_owned(),
            MaterializedView => "log, materialized view".to_owned(),
            Message => "pg_logical_emit_message".to_owned(),
            SelectOne => "SELECT 1".to_owned(),
        }
    }

    /// Tables and what belongs to them, before anything runs. Each way has its own.
    pub(crate) fn create(self, keys: Keys) -> String {
        match self {
            Counter | Hit | Message | SelectOne => String::new(),
            Insert => {
                "CREATE TABLE plain_log (name text NOT NULL, delta bigint NOT NULL);".to_owned()
            }
            Update => format!(
                "CREATE TABLE updated (name text PRIMARY KEY, n bigint NOT NULL);{}",
                keys.fill("updated")
            ),
            Upsert => {
                "CREATE TABLE upserted (name text PRIMARY KEY, n bigint NOT NULL);".to_owned()
            }
            Slots(count) => format!(
                "CREATE TABLE slots_{count} (name text, slot integer, n bigint NOT NULL,
                                             PRIMARY KEY (name, slot));"
            ),
            SummedLog => "CREATE TABLE summed_log (name text NOT NULL, delta bigint NOT NULL);
                          CREATE INDEX ON summed_log (name);"
                .to_owned(),
            FoldedLog { indexed } => {
                let log = folded_log(indexed);
                let index = if indexed {
                    format!("CREATE INDEX ON {log} (name);")
                } else {
                    String::new()
                };
                format!(
                    "CREATE TABLE {log} (name text NOT NULL, delta bigint NOT NULL);{index}
                     CREATE TABLE {log}_total (name text PRIMARY KEY, n bigint NOT NULL);"
                )
            }
            RowTrigger => "
                CREATE TABLE row_items (name text NOT NULL, delta bigint NOT NULL);
                CREATE TABLE row_counts (name text PRIMARY KEY, n bigint NOT NULL);
                CREATE FUNCTION count_row() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    INSERT INTO row_counts VALUES (NEW.name, 1)
                    ON CONFLICT (name) DO UPDATE SET n = row_counts.n + 1;
                    RETURN NULL;
                END $$;
                CREATE TRIGGER count AFTER INSERT ON row_items
                    FOR EACH ROW EXECUTE FUNCTION count_row();"
                .to_owned(),
            StatementTrigger => "
                CREATE TABLE statement_items (name text NOT NULL, delta bigint NOT NULL);
                CREATE TABLE statement_counts (name text PRIMARY KEY, n bigint NOT NULL);
                CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    INSERT INTO statement_counts SELECT name, count(*) FROM new_items GROUP BY name
                    ON CONFLICT (name) DO UPDATE SET n = statement_counts.n + excluded.n;
                    RETURN NULL;
                END $$;
                CREATE TRIGGER count AFTER INSERT ON statement_items
                    REFERENCING NEW TABLE AS new_items
                    FOR EACH STATEMENT EXECUTE FUNCTION count_statement();"
                .to_owned(),
            MaterializedView => "
                CREATE TABLE viewed_log (name text NOT NULL, delta bigint NOT NULL);
                CREATE MATERIALIZED VIEW viewed AS
                    SELECT name, sum(delta) AS n FROM viewed_log GROUP BY name;
                CREATE UNIQUE INDEX ON viewed (name);"
                .to_owned(),
        }
    }

    /// Gives it as good a start as it ever has, before each round. Counters go on.
    pub(crate) fn reset(self, keys: Keys) -> String {
        match self {
            Counter | Hit | Message | SelectOne => String::new(),
            Insert => "TRUNCATE plain_log;".to_owned(),
            // To make a million rows anew would make each of their pages new to the WAL.
            Update if keys.rows() > MANY => String::new(),
            Update => format!("TRUNCATE updated;{}", keys.fill("updated")),
            Upsert if keys.rows() > MANY => String::new(),
            Upsert => "TRUNCATE upserted;".to_owned(),
            Slots(count) => format!("TRUNCATE slots_{count};"),
            SummedLog => "TRUNCATE summed_log;".to_owned(),
            FoldedLog { indexed } => {
                let log = folded_log(indexed);
                format!("TRUNCATE {log}, {log}_total;")
            }
            RowTrigger => "TRUNCATE row_items, row_counts;".to_owned(),
            StatementTrigger => "TRUNCATE statement_items, statement_counts;".to_owned(),
            MaterializedView => "TRUNCATE viewed_log;".to_owned(),
        }
    }

    /// One increment by one.
    fn statement(self, keys: Keys) -> String {
        let name = keys.name();
        match self {
            Counter => format!("SELECT counter_incr({name});"),
            Hit => format!("SELECT counter_hit({name});"),
            Insert => insert("plain_log", name),
            Update => format!("UPDATE updated SET n = n + 1 WHERE name = {name};"),
            Upsert => format!(
                "INSERT INTO upserted VALUES ({name}, 1) \
                 ON CONFLICT (name) DO UPDATE SET n = upserted.n + 1;"
            ),
            Slots(count) => format!(
                "INSERT INTO slots_{count} VALUES ({name}, :slot, 1) \
                 ON CONFLICT (name, slot) DO UPDATE SET n = slots_{count}.n + 1;"
            ),
            SummedLog => insert("summed_log", name),
            FoldedLog { indexed } => insert(folded_log(indexed), name),
            RowTrigger => insert("row_items", name),
            StatementTrigger => insert("statement_items", name),
            MaterializedView => insert("viewed_log", name),
            Message => format!("SELECT pg_logical_emit_message(true, 'count', {name});"),
            SelectOne => "SELECT 1;".to_owned(),
        }
    }

    /// pgbench's script of a transaction. Names and slots are drawn once in it: who changes several
    /// rows in an order drawn by lot deadlocks.
    pub(crate) fn script(self, keys: Keys, batch: Batch) -> String {
        let mut script = keys.draw().to_owned();
        if let Slots(count) = self {
            script += &format!("\\set slot random(1, {count})\n");
        }
        let statement = format!("{}\n", self.statement(keys));
        script += &match batch {
            Batch::One => statement,
            Batch::Statements(count) => {
                format!("BEGIN;\n{}COMMIT;\n", statement.repeat(count as usize))
            }
            Batch::Pipeline(count) => format!(
                "\\startpipeline\n{}\\endpipeline\n",
                statement.repeat(count as usize)
            ),
        };
        script
    }

    /// How many increments there were, as a bigint: all that counting is for. None where nothing is
    /// kept.
    pub(crate) fn total(self, keys: Keys) -> Option<String> {
        Some(match self {
            Counter | Hit if keys == Keys::Hot => "SELECT counter_value('hot')".to_owned(),
            Counter | Hit => "SELECT counter_sum('page:')::bigint".to_owned(),
            Insert => "SELECT count(*) FROM plain_log".to_owned(),
            Update => sum("n", "updated"),
            Upsert => sum("n", "upserted"),
            Slots(count) => sum("n", &format!("slots_{count}")),
            SummedLog => sum("delta", "summed_log"),
            FoldedLog { indexed } => {
                let log = folded_log(indexed);
                format!(
                    "SELECT (SELECT coalesce(sum(n), 0) FROM {log}_total)::bigint
                          + (SELECT coalesce(sum(delta), 0) FROM {log})::bigint"
                )
            }
            RowTrigger => sum("n", "row_counts"),
            StatementTrigger => sum("n", "statement_counts"),
            // The view is as old as its last refresh.
            MaterializedView => sum("delta", "viewed_log"),
            Message | SelectOne => return None,
        })
    }

    /// How one counter is read. None where it cannot be.
    pub(crate) fn read(self, name: &str) -> Option<String> {
        Some(match self {
            Counter | Hit => format!("SELECT counter_value('{name}');"),
            Update => format!("SELECT n FROM updated WHERE name = '{name}';"),
            Upsert => format!("SELECT n FROM upserted WHERE name = '{name}';"),
            Slots(count) => format!("SELECT sum(n) FROM slots_{count} WHERE name = '{name}';"),
            SummedLog => format!("SELECT sum(delta) FROM summed_log WHERE name = '{name}';"),
            FoldedLog { indexed } => {
                let log = folded_log(indexed);
                format!(
                    "SELECT coalesce((SELECT n FROM {log}_total WHERE name = '{name}'), 0) \
                     + coalesce((SELECT sum(delta) FROM {log} WHERE name = '{name}'), 0);"
                )
            }
            RowTrigger => format!("SELECT n FROM row_counts WHERE name = '{name}';"),
            StatementTrigger => format!("SELECT n FROM statement_counts WHERE name = '{name}';"),
            MaterializedView => format!("SELECT n FROM viewed WHERE name = '{name}';"),
            Insert | Message | SelectOne => return None,
        })
    }

    /// What a job runs each second.
    pub(crate) fn job(self) -> Option<String> {
        match self {
            FoldedLog { indexed } => {
                let log = folded_log(indexed);
                Some(format!(
                    "WITH moved AS (DELETE FROM {log} RETURNING name, delta)
                     INSERT INTO {log}_total SELECT name, sum(delta) FROM moved GROUP BY name
                     ON CONFLICT (name) DO UPDATE SET n = {log}_total.n + excluded.n;"
                ))
            }
            MaterializedView => Some("REFRESH MATERIALIZED VIEW CONCURRENTLY viewed;".to_owned()),
            _ => None,
        }
    }

    /// Where its rows are, for their size: a condition on `pg_class c`.
    pub(crate) fn relations(self) -> String {
        match self {
            Counter | Hit => "c.relnamespace = 'counterx'::regnamespace".to_owned(),
            Update => "c.relname = 'updated'".to_owned(),
            Slots(count) => format!("c.relname = 'slots_{count}'"),
            FoldedLog { indexed } => {
                let log = folded_log(indexed);
                format!("c.relname IN ('{log}', '{log}_total')")
            }
            SummedLog => "c.relname = 'summed_log'".to_owned(),
            _ => "false".to_owned(),
        }
    }
}

fn folded_log(indexed: bool) -> &'static str {
    if indexed { "indexed_log" } else { "folded_log" }
}

fn insert(table: &str, name: &str) -> String {
    format!("INSERT INTO {table} VALUES ({name}, 1);")
}

fn sum(column: &str, table: &str) -> String {
    format!("SELECT coalesce(sum({column}), 0)::bigint FROM {table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_draws_once_and_counts_as_often_as_it_says() {
        for batch in [Batch::One, Batch::Statements(10), Batch::Pipeline(16)] {
            let script = Slots(100).script(Keys::Uniform, batch);
            assert_eq!(script.matches("\\set").count(), 2);
            assert_eq!(script.matches("INSERT").count(), batch.size() as usize);
        }
        let script = Counter.script(Keys::Hot, Batch::Statements(3));
        assert!(script.starts_with("BEGIN;\nSELECT") && script.ends_with("COMMIT;\n"));
    }

    #[test]
    fn names_are_no_variables_of_pgbench() {
        for keys in [Keys::Hot, Keys::Uniform, Keys::Zipf, Keys::Mixed] {
            let script = Counter.script(keys, Batch::One);
            // A colon and a letter is a variable; `page:'` and `::text` are none.
            let variables = script.replace("::", "").matches(":k").count();
            assert_eq!(variables, usize::from(keys != Keys::Hot), "{script}");
            assert!(!script.contains(":p"));
        }
    }
}
