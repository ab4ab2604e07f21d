-- Databases of other encodings than UTF-8. Names are bytes, and what is said of them are the same
-- bytes; here the client's encoding shows them.
\set SHOW_CONTEXT never
\encoding UTF8
SELECT current_database() AS home \gset
DROP DATABASE IF EXISTS counterx_latin1;
DROP DATABASE IF EXISTS counterx_eucjp;
DROP DATABASE IF EXISTS counterx_ascii;
CREATE DATABASE counterx_latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
CREATE DATABASE counterx_eucjp ENCODING 'EUC_JP' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
CREATE DATABASE counterx_ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;

\c counterx_latin1
\encoding UTF8
CREATE EXTENSION counterx;
SELECT counter_incr_many('{"café": 1, "caf\u00e8": 2}');
SELECT name, value, convert_to(name, 'LATIN1') FROM counter_list();
SELECT name FROM counters WHERE name LIKE 'café%';
EXPLAIN (COSTS OFF) SELECT name FROM counters WHERE name = 'café';
-- 255 of the database's bytes, which are more of the client's, are not too long.
SELECT counter_incr(repeat('é', 255));
SELECT counter_incr(repeat('é', 256));
SELECT counter_rename('cafés', 'x');
SELECT counter_incr_many('{"café": "x"}');
SELECT counter_incr('café', 9223372036854775807);
SELECT counter_incr_once('tôken', 'café', 1);
SELECT counter_incr_once('tôken', 'café', 2);
SELECT counter_type_create('café', min => 0);
-- Descriptions are texts as any other.
SELECT counter_type_create('stock', min => 0, description => 'entrepôt');
SELECT counter_type_alter('stock', max => 9);
SELECT counter_type_create('seat', options => '{"min": 0, "description": "à la carte"}');
SELECT counter_type_create('desk', options => '{"prix": 1, "dépôt": 2}');
SELECT name, min, max, description FROM counter_types ORDER BY name;
SELECT counter_incr('stock:thé', -1);
SELECT counter_incr('stock:thé', 2);
SELECT counter_hold('stock:thé', 1, '1 hour');
SELECT name FROM counter_holds;
SELECT * FROM counter_available('stock:thé');

\c counterx_eucjp
\encoding UTF8
CREATE EXTENSION counterx;
SELECT counter_incr('日本');
SELECT name, convert_to(name, 'EUC_JP') FROM counters;
SELECT counter_merge('日本', '東京');
-- Cut between two characters.
SELECT counter_incr('x' || repeat('日', 128));
SELECT counter_type_create('stock', options => '{"description": "在庫"}');
SELECT name, description FROM counter_types;

-- Without an encoding, everything goes through as it is.
\c counterx_ascii
\encoding SQL_ASCII
CREATE EXTENSION counterx;
SELECT counter_incr(convert_from('\xff80c3', 'SQL_ASCII'), 5);
SELECT convert_to(name, 'SQL_ASCII'), value FROM counters;
SELECT convert_to(name, 'SQL_ASCII'), value FROM counter_values(ARRAY[convert_from('\xff80c3', 'SQL_ASCII')]);
DO $$
DECLARE
    message text;
BEGIN
    PERFORM counter_rename(convert_from('\xfffe', 'SQL_ASCII'), 'x');
EXCEPTION WHEN undefined_object THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
    RAISE NOTICE '%', convert_to(message, 'SQL_ASCII');
END $$;

\c :home
\encoding UTF8
DROP DATABASE counterx_latin1 WITH (FORCE);
DROP DATABASE counterx_eucjp WITH (FORCE);
DROP DATABASE counterx_ascii WITH (FORCE);
