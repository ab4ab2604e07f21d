//! The oracle, and the functions that change counters and oracle alike.

use anyhow::Result;
use counterx_cluster_tests::{changes_schema, oracle_schema, prepare_bounded, prepare_windowed};
use postgres::Client;

/// Beside the [oracle's](oracle_schema) functions and those of the [changes](changes_schema).
///
/// What an `exact_` function is told by the engine is held against the oracle to the last unit, so it
/// is for counters that nobody else changes meanwhile. It returns what it was told, as text. Each
/// increment is a *use* here as well, and a drop takes the uses back: a counter exists while it has
/// some.
const EXACT: &str = r#"
    ALTER TABLE oracle ADD COLUMN uses bigint NOT NULL DEFAULT 1;
    DROP INDEX oracle_name;
    CREATE INDEX oracle_name ON oracle (name) INCLUDE (delta, uses);
    CREATE TABLE journal (
        client integer NOT NULL,
        serial bigint NOT NULL,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        PRIMARY KEY (client, serial)
    );

    -- Rows that are counted by a trigger.
    CREATE TABLE event (name text NOT NULL, delta bigint NOT NULL);
    CREATE FUNCTION count_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM bump(NEW.name, NEW.delta);
        RETURN NULL;
    END $$;
    CREATE TRIGGER count_event AFTER INSERT ON event FOR EACH ROW EXECUTE FUNCTION count_event();

    -- Commits and rolls back inside: every third of its transactions is undone.
    CREATE PROCEDURE walk(client integer, first bigint, steps integer, name text)
    LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN 0 .. steps - 1 LOOP
            INSERT INTO journal (client, serial) VALUES (client, first + i);
            PERFORM bump(name, i + 1);
            IF i % 3 = 2 THEN
                ROLLBACK;
            ELSE
                COMMIT;
            END IF;
        END LOOP;
    END $$;

    -- Fills a log, with one row for each transaction.
    CREATE PROCEDURE fill(name text, transactions integer) LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN 1 .. transactions LOOP
            PERFORM bump(name, 1);
            COMMIT;
        END LOOP;
    END $$;

    CREATE FUNCTION used(name text) RETURNS bigint LANGUAGE sql AS $$
        SELECT coalesce(sum(o.uses), 0)::bigint FROM public.oracle o WHERE o.name = $1
    $$;
    CREATE FUNCTION exact_bump(name text, delta bigint) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO oracle VALUES (name, delta);
        IF delta < 0 THEN
            PERFORM counter_decr(name, -delta);
        ELSE
            PERFORM counter_incr(name, delta);
        END IF;
        RETURN 'done';
    END $$;
    CREATE FUNCTION exact_get(counter text, delta bigint) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        got bigint;
        expected bigint;
    BEGIN
        INSERT INTO oracle VALUES (counter, delta);
        -- In one statement, so in one snapshot: this holds whatever others do.
        SELECT counter_incr_get(counter, delta),
               (SELECT sum(o.delta) FROM oracle o WHERE o.name = counter)
          INTO got, expected;
        PERFORM held('incr_get', counter, got = expected, got::text, expected::text);
        RETURN got;
    END $$;
    CREATE FUNCTION exact_set(name text, value bigint) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        old bigint := CASE WHEN value IS NULL THEN counter_reset(name) ELSE counter_set(name, value) END;
        before bigint := booked(name);
    BEGIN
        PERFORM held('old value', name, old = before, old::text, before::text);
        IF value IS NOT NULL OR used(name) > 0 THEN
            INSERT INTO oracle VALUES (name, coalesce(value, 0) - old);
        END IF;
        PERFORM held('new value', name, counter_value(name) = coalesce(value, 0),
                     counter_value(name)::text, value::text);
        RETURN old;
    END $$;
    CREATE FUNCTION exact_drop(name text) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        existed boolean := counter_drop(name);
        before bigint := booked(name);
        uses bigint := used(name);
    BEGIN
        PERFORM held('drop', name, existed = (uses > 0), existed::text, uses::text);
        IF existed THEN
            INSERT INTO oracle VALUES (name, -before, -uses);
        END IF;
        PERFORM held('dropped', name, counter_value(name) = 0
                     AND NOT EXISTS (SELECT FROM counters c WHERE c.name = $1), 'one', 'none');
        RETURN existed;
    END $$;
    CREATE FUNCTION exact_move(into_name text, from_name text, merge boolean) RETURNS text
    LANGUAGE plpgsql AS $$
    BEGIN
        BEGIN
            IF merge THEN
                PERFORM counter_merge(into_name, from_name);
            ELSE
                PERFORM counter_rename(from_name, into_name);
            END IF;
        EXCEPTION WHEN undefined_object THEN
            PERFORM held('missing', from_name, used(from_name) <= 0, 'none', 'one');
            RETURN 'missing';
        WHEN duplicate_object THEN
            PERFORM held('taken', into_name, used(into_name) > 0, 'one', 'none');
            RETURN 'taken';
        END;
        INSERT INTO oracle SELECT into_name, booked(from_name);
        INSERT INTO oracle SELECT from_name, -booked(from_name), -used(from_name);
        PERFORM held('moved', into_name, counter_value(into_name) = booked(into_name)
                     AND counter_value(from_name) = 0, counter_value(into_name)::text,
                     booked(into_name)::text);
        RETURN 'moved';
    END $$;
    CREATE FUNCTION exact_once(token text, name text, delta bigint) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        added boolean := counter_incr_once(token, name, delta);
    BEGIN
        IF added THEN
            INSERT INTO once VALUES (token);
            INSERT INTO oracle VALUES (name, delta);
        ELSIF current_setting('transaction_isolation') = 'read committed' THEN
            PERFORM held('token', token, EXISTS (SELECT FROM once o WHERE o.token = $1), 'used', 'new');
        END IF;
        RETURN added;
    END $$;
    CREATE FUNCTION exact_once_get(token text, name text, delta bigint) RETURNS text
    LANGUAGE plpgsql AS $$
    DECLARE
        got bigint := counter_incr_once_get(token, name, delta);
        first bigint;
    BEGIN
        INSERT INTO once VALUES (token, got) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            INSERT INTO oracle VALUES (name, delta);
        ELSE
            first := (SELECT o.value FROM once o WHERE o.token = $1);
            PERFORM held('replay', token, got = first, got::text, first::text);
        END IF;
        RETURN got;
    END $$;
    CREATE FUNCTION exact_take(name text, n bigint) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        got bigint := counter_take_up_to(name, n);
    BEGIN
        PERFORM held('take', name, got BETWEEN 0 AND n, got::text, n::text);
        -- To take nothing is to do nothing.
        IF got > 0 THEN
            INSERT INTO oracle VALUES (name, -got);
        END IF;
        RETURN got;
    END $$;
    CREATE FUNCTION exact_hold(name text, amount bigint, ttl interval) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        id bigint := counter_hold(name, amount, ttl);
    BEGIN
        INSERT INTO basket VALUES (id, name, amount);
        RETURN id;
    EXCEPTION WHEN check_violation THEN
        RETURN 'refused';
    END $$;
    CREATE FUNCTION exact_confirm(hold bigint, part bigint) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM counter_hold_confirm(hold, part);
        INSERT INTO oracle SELECT b.name, -part FROM basket b WHERE b.id = hold;
        RETURN 'done';
    EXCEPTION WHEN undefined_object THEN
        RETURN 'missing';
    WHEN object_not_in_prerequisite_state THEN
        RETURN 'expired';
    END $$;

    -- More counters than fit in memory, so all that was done before is written. They are gone then.
    CREATE FUNCTION overflow(number integer) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM set_config('counterx.pending_work_mem', '64kB', true);
        PERFORM counter_incr(rpad(format('n:overflow:%s:%s', number, i), 200, 'x')) FROM generate_series(1, 300) i;
        PERFORM counter_drop(rpad(format('n:overflow:%s:%s', number, i), 200, 'x')) FROM generate_series(1, 300) i;
        RETURN 'done';
    END $$;
    -- Fetches so many rows; then goes on, in a block with an exception, until a row fails.
    CREATE FUNCTION fetch_guarded(query text, kept integer) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        rows refcursor;
        answer text;
        answers text[] := '{}';
    BEGIN
        OPEN rows FOR EXECUTE query;
        FOR i IN 1 .. kept LOOP
            FETCH rows INTO answer;
            answers := answers || answer;
        END LOOP;
        BEGIN
            LOOP
                FETCH rows INTO answer;
                EXIT WHEN NOT FOUND;
            END LOOP;
            RAISE EXCEPTION 'a division by zero went well';
        EXCEPTION WHEN division_by_zero THEN
            RETURN array_to_string(answers, '~', '');
        END;
    END $$;

    -- Counters that begin anew are looked at by one time where there is one snapshot; else not by two looks.
    CREATE FUNCTION is_shown(name text) RETURNS boolean LANGUAGE sql STABLE AS $$
        SELECT NOT name ^@ 'window.' OR current_setting('transaction_isolation') <> 'read committed'
    $$;

    -- All ways to read, held against the oracle and each other, in the snapshot of the caller's
    -- statement; an empty text when all agree.
    CREATE FUNCTION wrong() RETURNS text LANGUAGE sql STABLE AS $$
        WITH books AS MATERIALIZED (
            SELECT name, sum(delta) AS value, sum(uses) > 0 AS lives FROM oracle GROUP BY name
        ), listed AS MATERIALIZED (
            SELECT name, value FROM counters WHERE is_shown(name)
        ), paged AS MATERIALIZED (
            SELECT name, value::numeric FROM counter_list('', NULL, 1000000) WHERE is_shown(name)
        ), asked AS MATERIALIZED (
            SELECT v.name, v.value::numeric
              FROM counter_values((SELECT array_agg(name ORDER BY name DESC) FROM books)) v
        ), prefixes (prefix) AS (
            SELECT p FROM unnest('{"",u:,own:1,stock:,s:,window.}'::text[]) p
             WHERE is_shown('window.') OR (p <> '' AND p <> 'window.')
        ), wrongs (what) AS (
            SELECT format('%s: oracle %s, counters %s', name, b.value, l.value)
              FROM books b FULL JOIN listed l USING (name)
             WHERE coalesce(b.value, 0) <> coalesce(l.value, 0) AND NOT name ^@ 'hit:' AND NOT name ^@ 'window.'
            UNION ALL
            SELECT format('%s: exists %s, listed %s', name, b.lives, l.name IS NOT NULL)
              FROM books b FULL JOIN listed l USING (name)
             WHERE exactly(name) AND coalesce(b.lives, false) <> (l.name IS NOT NULL)
            UNION ALL
            SELECT format('%s: oracle %s, counter_value %s', name, b.value, counter_value(name))
              FROM books b WHERE counter_value(name) <> b.value
            UNION ALL
            SELECT format('%s: oracle %s, counter_values %s', name, b.value, a.value)
              FROM books b FULL JOIN asked a USING (name) WHERE b.value IS DISTINCT FROM a.value
            UNION ALL
            SELECT format('%s: counters %s, counter_list %s', name, l.value, p.value)
              FROM listed l FULL JOIN paged p USING (name) WHERE l.value IS DISTINCT FROM p.value
            UNION ALL
            SELECT format('counter_sum(%s): %s', prefix, counter_sum(prefix)) FROM prefixes
             WHERE counter_sum(prefix) <>
                   (SELECT coalesce(sum(value), 0) FROM listed WHERE name ^@ prefix)
            UNION ALL
            SELECT format('counter_top(%s): %s, not %s', prefix, found, expected) FROM prefixes,
                   LATERAL (SELECT ARRAY(SELECT (name, value)::text FROM counter_top(3, prefix))) f (found),
                   LATERAL (SELECT ARRAY(SELECT (name, value)::text FROM listed WHERE name ^@ prefix
                       ORDER BY value DESC, name LIMIT 3)) e (expected)
             WHERE found <> expected
            UNION ALL
            SELECT format('counter_bottom(%s): %s, not %s', prefix, found, expected) FROM prefixes,
                   LATERAL (SELECT ARRAY(SELECT (name, value)::text FROM counter_bottom(3, prefix))) f (found),
                   LATERAL (SELECT ARRAY(SELECT (name, value)::text FROM listed WHERE name ^@ prefix
                       ORDER BY value, name DESC LIMIT 3)) e (expected)
             WHERE found <> expected
            UNION ALL
            SELECT format('%s is %s, out of %s to %s', l.name, l.value, t.min, t.max)
              FROM listed l JOIN counter_types t ON split_part(l.name, ':', 1) = t.name
             WHERE (l.value < t.min OR l.value > t.max) AND NOT l.name ^@ 'window.'
            UNION ALL
            -- Kept from the beginning: all that a counter has is in its buckets, and in its events.
            SELECT format('%s: oracle %s, by %s %s, at last %s', b.name, b.value, h.unit, s.sum, s.last)
              FROM books b JOIN counter_histories h ON h.type = split_part(b.name, ':', 1) AND h.unit <> 'event',
                   LATERAL (SELECT coalesce(sum(delta + adjusted), 0) AS sum, count(*) FILTER (WHERE delta <> ups - downs) AS odd,
                                   coalesce((array_agg(k.value ORDER BY start DESC))[1], 0) AS last
                              FROM counter_buckets(b.name, h.unit) k) s
             WHERE s.sum <> b.value OR s.last <> b.value OR s.odd > 0
            UNION ALL
            SELECT format('%s: oracle %s, events %s', b.name, b.value, s.sum)
              FROM books b JOIN counter_histories h ON h.type = split_part(b.name, ':', 1) AND h.unit = 'event',
                   LATERAL (SELECT coalesce(sum(delta), 0) AS sum FROM counter_events(b.name, max_rows => 1000000)) s
             WHERE s.sum <> b.value
        )
        SELECT coalesce(string_agg(what, E'\n'), '') FROM wrongs
    $$;
"#;

/// Where nobody acts while another does, everything is exact; else, what one client has to itself.
pub(crate) enum Exact {
    Everything,
    OwnCounters,
}

/// Makes all of it, in a new database.
pub(crate) fn install(client: &mut Client, exact: &Exact) -> Result<()> {
    client.batch_execute("CREATE EXTENSION counterx")?;
    client.batch_execute(oracle_schema())?;
    client.batch_execute(changes_schema())?;
    for history in [
        "'own', 'infinity', events => 'infinity'",
        "'u', NULL, '35 days', NULL, 'infinity', time_zone => 'Asia/Kathmandu'",
        "'stock', '1 day', NULL, NULL",
        "'s', NULL, NULL, NULL, events => '7 days'",
    ] {
        client.batch_execute(&format!("SELECT counter_history({history})"))?;
    }
    prepare_bounded(client)?;
    prepare_windowed(client)?;
    let exactly = match exact {
        Exact::Everything => "true",
        Exact::OwnCounters => "$1 ^@ 'own:' OR $1 ^@ 'u:' OR $1 ^@ 'stock:own:'",
    };
    client.batch_execute(&format!(
        "CREATE FUNCTION exactly(name text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
            SELECT {exactly}
         $$"
    ))?;
    Ok(client.batch_execute(EXACT)?)
}
