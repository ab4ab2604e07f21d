import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * pgjdbc, used as docs/clients.md says: Counters is the class that stands there, taken out of the page.
 * Prints a line for each test, as PostgreSQL's own test drivers do.
 */
final class ClientTest {
    static int failed = 0;

    interface Test {
        void run(Connection connection) throws SQLException;
    }

    public static void main(String[] arguments) throws SQLException {
        try (var db = connect()) {
            execute(db, "SELECT counter_type_create('jdbc-stock', min => 0)");
            execute(db, """
                CREATE TABLE jdbc_post (id int);
                CREATE FUNCTION jdbc_count() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM counter_incr('jdbc-posts'); RETURN NULL; END $$;
                CREATE TRIGGER count AFTER INSERT ON jdbc_post FOR EACH ROW EXECUTE FUNCTION jdbc_count()""");
            // Committed, for all tests.
            Counters.count(db, "jdbc-stock:mug", 3);
        }
        for (String again : new String[] {"", "-again"}) {
            rolledBack("rows" + again, ClientTest::rows);
            rolledBack("take" + again, ClientTest::take);
            rolledBack("hold" + again, ClientTest::hold);
            rolledBack("token" + again, ClientTest::token);
        }
        test("update-counts-once", ClientTest::updateCountsOnce);
        test("update-of-select-counts-and-fails", ClientTest::updateOfSelect);
        test("braces", ClientTest::braces);
        test("batch", ClientTest::batch);
        test("fetch-size", ClientTest::fetchSize);
        test("errors", ClientTest::errors);
        test("read-only", ClientTest::readOnly);
        test("retry", ClientTest::retry);
        System.exit(failed == 0 ? 0 : 1);
    }

    static void rows(Connection db) throws SQLException {
        try (var insert = db.prepareStatement("INSERT INTO jdbc_post SELECT generate_series(1, 3)")) {
            same(insert.executeUpdate(), 3);
        }
        same(Counters.value(db, "jdbc-posts"), 3L);
        try (var other = connect()) {
            same(Counters.value(other, "jdbc-posts"), 0L);
        }
    }

    static void take(Connection db) throws SQLException {
        same(Counters.take(db, "jdbc-stock:mug", 3), true);
        same(Counters.take(db, "jdbc-stock:mug", 1), false);
        // What the test has added, it can take.
        Counters.count(db, "jdbc-stock:mug", 5);
        same(Counters.take(db, "jdbc-stock:mug", 5), true);
        same(Counters.take(db, "jdbc-stock:mug", 1), false);
    }

    static void hold(Connection db) throws SQLException {
        long hold;
        try (var query = db.prepareStatement("SELECT counter_hold(?, ?, ?::interval)")) {
            query.setString(1, "jdbc-stock:mug");
            query.setLong(2, 2);
            query.setString(3, "1 minute");
            var rows = query.executeQuery();
            rows.next();
            hold = rows.getLong(1);
        }
        same(Counters.take(db, "jdbc-stock:mug", 2), false);
        try (var query = db.prepareStatement("SELECT counter_hold_confirm(?)")) {
            query.setLong(1, hold);
            var rows = query.executeQuery();
            rows.next();
            same(rows.getObject(1), true);
        }
        same(Counters.value(db, "jdbc-stock:mug"), 1L);
    }

    static void token(Connection db) throws SQLException {
        same(Counters.countOnce(db, "jdbc-token", "jdbc", 2), true);
        same(Counters.countOnce(db, "jdbc-token", "jdbc", 2), false);
        same(Counters.value(db, "jdbc"), 2L);
    }

    static void updateCountsOnce(Connection db) throws SQLException {
        // More often than the driver needs to prepare the statement on the server.
        for (int i = 0; i < 20; i++) Counters.count(db, "jdbc-call", i);
        same(Counters.value(db, "jdbc-call"), 190L);
        try (var call = db.prepareStatement("CALL counter_add(?, ?)")) {
            call.setString(1, "jdbc-call");
            call.setInt(2, 10);
            same(call.executeUpdate(), 0);
        }
        same(Counters.value(db, "jdbc-call"), 200L);
    }

    static void updateOfSelect(Connection db) throws SQLException {
        raises("0100E", () -> {
            try (var statement = db.createStatement()) {
                statement.executeUpdate("SELECT counter_incr('jdbc-select')");
            }
        });
        same(Counters.value(db, "jdbc-select"), 1L);
    }

    static void braces(Connection db) throws SQLException {
        String text = "{call counter_add(?, ?)}";
        raises("42809", () -> call(db, text));
        same(Counters.value(db, "jdbc-braces"), 0L);
        call(db, "CALL counter_add(?, ?)");
        try (var other = connect("escapeSyntaxCallMode", "callIfNoReturn")) {
            call(other, text);
        }
        same(Counters.value(db, "jdbc-braces"), 2L);
    }

    static void call(Connection db, String text) throws SQLException {
        try (var call = db.prepareCall(text)) {
            call.setString(1, "jdbc-braces");
            call.setLong(2, 1);
            call.execute();
        }
    }

    static void batch(Connection db) throws SQLException {
        try (var call = db.prepareStatement("CALL counter_add(?, ?)")) {
            for (int i = 1; i <= 100; i++) {
                call.setString(1, "jdbc-batch");
                call.setLong(2, i);
                call.addBatch();
            }
            same(call.executeBatch().length, 100);
        }
        same(Counters.value(db, "jdbc-batch"), 5050L);
    }

    static void fetchSize(Connection db) throws SQLException {
        db.setAutoCommit(false);
        try (var query = db.prepareStatement("SELECT counter_incr('jdbc-part') FROM generate_series(1, 100)")) {
            query.setFetchSize(10);
            query.executeQuery().next();
        }
        db.commit();
        same(Counters.value(db, "jdbc-part"), 10L);
    }

    static void errors(Connection db) throws SQLException {
        raises("23514", () -> Counters.count(db, "jdbc-stock:mug", -4));
        try (var query = db.prepareStatement("SELECT counter_incr(?)")) {
            query.setString(1, "");
            raises("22023", query::executeQuery);
        }
    }

    static void readOnly(Connection db) throws SQLException {
        db.setReadOnly(true);
        // The driver begins read-only transactions; with autocommit it begins none.
        Counters.count(db, "jdbc-read-only", 1);
        db.setAutoCommit(false);
        raises("25006", () -> Counters.count(db, "jdbc", 1));
        db.rollback();
        raises("25006", () -> Counters.take(db, "jdbc-read-only", 1));
        db.rollback();
        same(Counters.value(db, "jdbc-read-only"), 1L);
    }

    static void retry(Connection db) throws SQLException {
        db.setAutoCommit(false);
        var calls = new AtomicInteger();
        same(Counters.inTransaction(db, () -> {
            Counters.count(db, "jdbc-retry", 1);
            if (calls.incrementAndGet() < 3) execute(db, "DO $$ BEGIN RAISE serialization_failure; END $$");
            return calls.get();
        }), 3);
        raises("40001", () -> Counters.inTransaction(db, () -> {
            calls.incrementAndGet();
            Counters.count(db, "jdbc-retry", 1);
            execute(db, "DO $$ BEGIN RAISE serialization_failure; END $$");
            return null;
        }));
        same(calls.get(), 3 + 5);
        same(Counters.value(db, "jdbc-retry"), 1L);
    }

    static void execute(Connection db, String text) throws SQLException {
        try (var statement = db.createStatement()) {
            statement.execute(text);
        }
    }

    static Connection connect(String... options) throws SQLException {
        var properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        for (int i = 0; i < options.length; i += 2) properties.setProperty(options[i], options[i + 1]);
        // This driver knows no sockets of the file system.
        return DriverManager.getConnection(
            "jdbc:postgresql://localhost:" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"), properties);
    }

    static void rolledBack(String name, Test test) {
        test(name, db -> {
            db.setAutoCommit(false);
            try {
                test.run(db);
            } finally {
                db.rollback();
            }
        });
    }

    static void test(String name, Test test) {
        try (var db = connect()) {
            test.run(db);
            System.out.println("test jdbc-" + name + " ... ok");
        } catch (SQLException | AssertionError error) {
            failed++;
            error.printStackTrace();
            System.out.println("test jdbc-" + name + " ... FAILED");
        }
    }

    interface Work {
        void run() throws SQLException;
    }

    static void raises(String sqlstate, Work work) {
        try {
            work.run();
        } catch (SQLException error) {
            same(error.getSQLState(), sqlstate);
            return;
        }
        throw new AssertionError("no error " + sqlstate);
    }

    static void same(Object is, Object wanted) {
        if (!wanted.equals(is)) throw new AssertionError("is " + is + ", and not " + wanted);
    }
}
