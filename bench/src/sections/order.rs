//! A realistic transaction: an order is inserted, and three counters change with it.

use anyhow::Result;

use crate::options::{Options, Section};
use crate::race::{Entry, Pace, race};
use crate::report::Measured;
use crate::server::Server;

const DRAW: &str = "\
\\set customer random(1, 10000)
\\set product random_zipfian(1, 1000, 1.05)
";

const ORDER: &str = "INSERT INTO orders (customer, product) VALUES (:customer, :product);";

/// Names of the three, in the order in which rows have to be locked: the hot one last, so that it is
/// locked for the shortest time; in the same order by everybody, so that nobody deadlocks.
const NAMES: [&str; 3] = [
    "('customer:' || :customer::text)",
    "('product:' || :product::text)",
    "('orders')",
];

const CREATE: &str = "
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer integer NOT NULL,
                         product integer NOT NULL, at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE triggered_orders (LIKE orders INCLUDING ALL);
    CREATE TABLE counts (name text PRIMARY KEY, n bigint NOT NULL);
    INSERT INTO counts
    SELECT 'customer:' || i, 0 FROM generate_series(1, 10000) AS i
    UNION ALL SELECT 'product:' || i, 0 FROM generate_series(1, 1000) AS i
    UNION ALL SELECT 'orders', 0;
    CREATE TABLE trigger_counts (name text PRIMARY KEY, n bigint NOT NULL);
    CREATE TABLE count_log (name text NOT NULL, delta bigint NOT NULL);
    CREATE INDEX ON count_log (name);
    CREATE FUNCTION count_order() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO trigger_counts VALUES ('customer:' || NEW.customer, 1)
        ON CONFLICT (name) DO UPDATE SET n = trigger_counts.n + 1;
        INSERT INTO trigger_counts VALUES ('product:' || NEW.product, 1)
        ON CONFLICT (name) DO UPDATE SET n = trigger_counts.n + 1;
        INSERT INTO trigger_counts VALUES ('orders', 1)
        ON CONFLICT (name) DO UPDATE SET n = trigger_counts.n + 1;
        RETURN NULL;
    END $$;
    CREATE TRIGGER count AFTER INSERT ON triggered_orders
        FOR EACH ROW EXECUTE FUNCTION count_order();";

const RESET: &str = "TRUNCATE orders, triggered_orders, count_log;";

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("order", options)?;
    server.execute(CREATE)?;
    server.execute("VACUUM (ANALYZE)")?;
    let in_transaction = |statement: fn(&str) -> String| {
        let statements: String = NAMES.iter().map(|name| statement(name)).collect();
        format!("{DRAW}BEGIN;\n{ORDER}\n{statements}COMMIT;\n")
    };
    let entry = |name: &str, script: &str, total: &str| {
        let mut entry = Entry::custom(name, script, total, options.clients);
        RESET.clone_into(&mut entry.reset);
        entry
    };
    let names = NAMES.join(", ");
    let counters = "SELECT counter_value('orders')";
    let entries = [
        entry(
            "counter_incr, three statements",
            &in_transaction(|name| format!("SELECT counter_incr({name});\n")),
            counters,
        ),
        entry(
            "counter_incr_many, one statement",
            &format!(
                "{DRAW}BEGIN;\n{ORDER}\nSELECT counter_incr_many(ARRAY[{names}], '{{1,1,1}}');\nCOMMIT;\n"
            ),
            counters,
        ),
        entry(
            "UPDATE of three rows",
            &in_transaction(|name| format!("UPDATE counts SET n = n + 1 WHERE name = {name};\n")),
            "SELECT n FROM counts WHERE name = 'orders'",
        ),
        entry(
            "three rows into an indexed log",
            &in_transaction(|name| format!("INSERT INTO count_log VALUES ({name}, 1);\n")),
            "SELECT coalesce(sum(delta), 0)::bigint FROM count_log WHERE name = 'orders'",
        ),
        entry(
            "AFTER trigger that upserts three rows",
            &format!("{DRAW}{}\n", ORDER.replace("orders", "triggered_orders")),
            "SELECT coalesce(sum(n), 0)::bigint FROM trigger_counts WHERE name = 'orders'",
        ),
        entry(
            "the order alone, nothing counted",
            &format!("{DRAW}BEGIN;\n{ORDER}\nCOMMIT;\n"),
            "SELECT count(*) FROM orders",
        ),
    ];
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let title = format!("orders, {} clients, durable", options.clients);
    let race = race(&mut server, &title, pace, &entries)?;
    let mut measured = Measured::new(
        Section::Order,
        "An order is inserted, and three counters go up in the same transaction: of its customer (one of \
         10,000), of its product (one of 1,000, some of them popular), and of all orders, which is hot. \
         Rates are those of transactions. Rows are locked in the same order by all, the hot one last: \
         written carelessly, the UPDATEs deadlock. Triggers need one round trip where others need five.",
    );
    measured.plots.push(race.plot("order", &title));
    measured.races.push(race);
    Ok(measured)
}
