-- The first steps of everybody: create, count, read.
CREATE EXTENSION counterx;
SELECT counter_value('abc');
SELECT counter_incr('abc');
SELECT counter_incr('abc', 41);
SELECT counter_decr('abc', 2);
SELECT counter_value('abc');
SELECT * FROM counters;
