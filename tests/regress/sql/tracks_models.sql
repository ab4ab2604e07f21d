-- What applications keep counter caches for, as tracks: the counts of a row's children and what can happen to
-- these. What an application's own code would have to call is a statement here, whoever runs it.
CREATE EXTENSION counterx;
\set VERBOSITY terse
CREATE TABLE category (id integer PRIMARY KEY, company integer NOT NULL, UNIQUE (company, id));
CREATE TABLE users (id integer PRIMARY KEY, name text);
CREATE TABLE review (
    id integer PRIMARY KEY,
    author integer REFERENCES users ON DELETE CASCADE,
    subject_type text, subject_id text,
    kind text, approvals integer, heavy boolean, deleted_at timestamptz, cost money, rating double precision, lock_version integer NOT NULL DEFAULT 0
);
INSERT INTO users VALUES (1, 'a'), (2, 'b');
SELECT counter_track('review', 'reviews', '{author}', filter => 'deleted_at IS NULL');
SELECT counter_track('review', 'all-reviews', '{author}');
SELECT counter_track('review', 'deleted', '{author}', filter => 'deleted_at IS NOT NULL');
SELECT counter_track('review', 'kinds', '{author, kind}', filter => $$kind IN ('using', 'tried') AND deleted_at IS NULL$$);
SELECT counter_track('review', 'approvals', '{author}', sum => 'approvals', filter => 'deleted_at IS NULL');
SELECT counter_track('review', 'weight', '{author}', sum => 'CASE WHEN heavy THEN 2 ELSE 1 END');
SELECT counter_track('review', 'threefold', '{author}', sum => '3');
SELECT counter_track('review', 'signs', ARRAY['author', $$CASE WHEN approvals < 0 THEN 'against' ELSE 'for' END$$], sum => 'approvals', filter => 'approvals <> 0');
SELECT counter_track('review', 'subjects', '{subject_type, subject_id}', filter => 'subject_type IS NOT NULL');
-- Money goes by the server's locale, floating-point numbers by the order in which they are added.
SELECT counter_track('review', 'cost', '{author}', sum => 'cost');
SELECT counter_track('review', 'cost', '{author}', sum => 'cost::numeric');
SELECT counter_track('review', 'rating', '{author}', sum => 'rating');
SELECT counter_track('review', 'rating', '{author}', sum => 'rating::numeric(12,3)', scale => 3);
SELECT count(*) FROM counter_recount('review');

CREATE FUNCTION of_author(which integer) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(concat(t.type, ' ' || g.key[2], '=', g.value), ', ' ORDER BY t.type COLLATE "C", g.key COLLATE "C")
    FROM counter_tracks t, counter_groups(t.type, which) g WHERE t.type <> 'subjects'
$$;
-- Made, changed, moved, removed.
INSERT INTO review (id, author, kind, approvals, heavy) VALUES (1, 1, 'using', 5, true);
SELECT of_author(1), of_author(2);
UPDATE review SET kind = 'tried', approvals = -7, heavy = false WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET kind = NULL, approvals = NULL WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET kind = 'other', approvals = 0, heavy = NULL WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET author = 2, kind = 'using', approvals = 3, rating = 0.1 WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET author = NULL WHERE id = 1;
SELECT of_author(1), of_author(2), (SELECT value FROM counter_groups('reviews', NULL)) AS of_nobody;
UPDATE review SET author = 1 WHERE id = 1;
DELETE FROM review WHERE id = 1;
DELETE FROM review WHERE id = 1;
SELECT count(*) FROM counters;
-- Twice in one transaction, and what is undone.
BEGIN;
INSERT INTO review (id, author, kind, approvals) VALUES (1, 1, 'using', 0);
SELECT counter_value('approvals:1') AS approvals;
UPDATE review SET approvals = 42 WHERE id = 1;
INSERT INTO review (id, author, kind, approvals) VALUES (2, 1, 'using', 1);
SELECT counter_value('approvals:1') AS approvals;
SAVEPOINT a;
UPDATE review SET author = 2;
DELETE FROM review WHERE id = 1;
SELECT of_author(1), of_author(2);
ROLLBACK TO a;
COMMIT;
SELECT of_author(1), of_author(2);
-- What does not concern a track writes nothing for it.
SELECT counterx.compact() > 0 AS folded;
UPDATE review SET lock_version = lock_version + 1, cost = '1.00';
UPDATE review SET author = author, kind = kind, approvals = approvals;
UPDATE review SET approvals = -approvals WHERE approvals = 0;
SELECT sum(pending_deltas) FROM counterx.lanes;
-- Deleted softly, once or twice, changed meanwhile, restored, and deleted for good.
UPDATE review SET deleted_at = '2026-01-01' WHERE id = 1;
UPDATE review SET deleted_at = '2026-01-02' WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET approvals = 50, author = 2 WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET deleted_at = NULL WHERE id = 1;
UPDATE review SET deleted_at = NULL WHERE id = 1;
SELECT of_author(1), of_author(2);
UPDATE review SET deleted_at = 'infinity' WHERE id = 1;
DELETE FROM review WHERE id = 1;
SELECT of_author(1), of_author(2);
-- With whom they belong to.
DELETE FROM users WHERE id = 1;
SELECT count(*) FROM counters;
-- Many kinds of parents, whose ids are numbers or texts.
INSERT INTO users VALUES (1, 'a');
INSERT INTO review (id, subject_type, subject_id) VALUES (1, 'Employee', '3000'), (2, 'Product', '1'), (3, 'Product', '1'), (4, 'Page', 'http://x/a%b:c'), (5, NULL, '1'), (6, 'Product', NULL);
UPDATE review SET subject_type = 'Employee', subject_id = '3000' WHERE id = 3;
SELECT * FROM counter_groups('subjects');
SELECT value FROM counter_groups('subjects', 'Page', 'http://x/a%b:c');
DELETE FROM review WHERE id IN (1, 4, 6);
SELECT * FROM counter_groups('subjects');

-- All at once, past what an application's code would see.
INSERT INTO review (id, author, kind, approvals) SELECT n, 1 + n % 2, (ARRAY['using', 'tried', 'no'])[1 + n % 3], n - 20 FROM generate_series(10, 40) n;
UPDATE review SET author = 3 - author WHERE id > 20;
DELETE FROM review USING users WHERE users.id = author AND name = 'a' AND kind = 'no';
SELECT of_author(1), of_author(2);
SELECT * FROM counter_drift('review');
-- What is wrong is told, and put right, for one track or all.
ALTER TABLE review DISABLE TRIGGER USER;
DELETE FROM review WHERE author = 1;
UPDATE review SET deleted_at = '2026-01-01' WHERE id % 2 = 0;
DO $$ DECLARE command text; BEGIN
    FOR command IN SELECT format('ALTER TABLE review ENABLE ALWAYS TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 'review'::regclass AND tgname LIKE 'counterx%' LOOP EXECUTE command; END LOOP;
END $$;
SELECT * FROM counter_drift('review', 'reviews');
SELECT * FROM counter_recount('review', 'reviews');
SELECT * FROM counter_recount('review', 'reviews');
SELECT count(DISTINCT split_part(name, ':', 1)) FROM counter_drift('review');
SELECT count(DISTINCT split_part(name, ':', 1)) FROM counter_recount('review');
SELECT * FROM counter_drift('review');
SELECT of_author(1), of_author(2);
SELECT author, count(*) FILTER (WHERE deleted_at IS NULL) AS reviews, sum(approvals) FILTER (WHERE deleted_at IS NULL) AS approvals FROM review WHERE author IS NOT NULL GROUP BY author;

-- Of a level above the next one, whose key comes along with the foreign key.
CREATE TABLE product (id integer PRIMARY KEY, category integer, company integer,
    FOREIGN KEY (company, category) REFERENCES category (company, id) ON UPDATE CASCADE ON DELETE SET NULL);
SELECT counter_track('product', 'of-category', '{category}'), counter_track('product', 'of-company', '{company}'), counter_track('category', 'categories', '{company}');
SELECT count(*) FROM counter_recount('product');
SELECT count(*) FROM counter_recount('category');
INSERT INTO category VALUES (1, 10), (2, 10), (3, 20);
INSERT INTO product SELECT n, c.id, c.company FROM generate_series(1, 9) n JOIN category c ON c.id = 1 + n % 3;
SELECT name, value FROM counters WHERE name ^@ 'of-' OR name ^@ 'categories' ORDER BY name;
UPDATE category SET company = 20 WHERE id = 2;
SELECT name, value FROM counters WHERE name ^@ 'of-' OR name ^@ 'categories' ORDER BY name;
DELETE FROM category WHERE id = 3;
SELECT name, value FROM counters WHERE name ^@ 'of-' OR name ^@ 'categories' ORDER BY name;
SELECT * FROM counter_drift('product');
SELECT * FROM counter_drift('category');
-- A level that is filled by a trigger.
CREATE TABLE line (id integer, product integer, company integer);
CREATE FUNCTION find_company() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.company := (SELECT company FROM product WHERE id = NEW.product); RETURN NEW; END $$;
CREATE TRIGGER find_company BEFORE INSERT OR UPDATE ON line FOR EACH ROW EXECUTE FUNCTION find_company();
SELECT counter_track('line', 'lines', '{company, product}');
SELECT count(*) FROM counter_recount('line');
INSERT INTO line VALUES (1, 3), (2, 3), (3, 1), (4, NULL);
UPDATE line SET product = 1 WHERE id = 1;
SELECT * FROM counter_groups('lines');
SELECT * FROM counter_drift('line');

-- Trees: rows of a table that belong to rows of it.
CREATE TABLE node (id integer PRIMARY KEY, parent integer REFERENCES node ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE);
SELECT counter_track('node', 'children', '{parent}');
SELECT count(*) FROM counter_recount('node');
INSERT INTO node VALUES (1, NULL), (2, 1), (3, 1), (4, 2), (5, 2), (6, 5), (7, 7);
SELECT * FROM counter_groups('children');
UPDATE node SET id = 20 WHERE id = 2;
UPDATE node SET parent = 20 WHERE id = 3;
SELECT * FROM counter_groups('children');
DELETE FROM node WHERE id = 20;
SELECT * FROM counter_groups('children');
DELETE FROM node WHERE parent IS NULL;
DELETE FROM node WHERE id = 7;
SELECT * FROM counter_groups('children');
SELECT * FROM counter_drift('node');

-- Words that SQL has reserved, and keys of several columns.
CREATE TABLE "order" ("select" integer, "group" text, "Sum of it" numeric(10,2), "user" integer GENERATED ALWAYS AS ("select" % 2) STORED, PRIMARY KEY ("select", "group"));
SELECT counter_track('"order"', 'orders', '{group, user}', sum => 'Sum of it', scale => 2, filter => '"select" IS DISTINCT FROM 3');
SELECT count(*) FROM counter_recount('"order"');
INSERT INTO "order" ("select", "group", "Sum of it") VALUES (1, 'a', 1.5), (2, 'a', 2.25), (3, 'a', 100), (3, 'b', 100), (4, 'b', NULL), (5, 'b', -1);
SELECT key, value, rows, round(avg, 2) AS avg FROM counter_groups('orders');
UPDATE "order" SET "select" = "select" + 10 - 3 * ("select" % 2) WHERE "select" < 4 AND "group" = 'a';
DELETE FROM "order" WHERE "group" = 'b' AND "select" = 4;
SELECT key, value, rows, round(avg, 2) AS avg FROM counter_groups('orders');
SELECT * FROM counter_drift('"order"');
-- A generated column that no track uses may come and go.
ALTER TABLE "order" ADD COLUMN more integer GENERATED ALWAYS AS ("select" + 1) STORED;
ALTER TABLE "order" DROP COLUMN more;
SELECT state, reason FROM counter_tracks WHERE type = 'orders';
