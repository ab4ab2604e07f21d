//! The server's own check of tables and indexes: the extension amcheck.

use anyhow::{Context, Result, ensure};
use postgres::Client;

/// Holds every table and index of the schema counterx to amcheck, and returns how many relations
/// that were: each heap's rows and visibility information; each index's order, from its root too, and
/// that there is an entry for every row. May run beside a load, which then has to wait for it; and on
/// a standby, which leaves out what its locks do not allow.
///
/// # Errors
/// What amcheck found, by relation; or that the extension is not there.
pub fn amcheck(client: &mut Client) -> Result<u64> {
    let standby: bool = client.query_one("SELECT pg_is_in_recovery()", &[])?.get(0);
    if !standby {
        client.batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA pg_catalog")?;
    }
    // Indexes that are not valid are made by CREATE INDEX CONCURRENTLY, and lack entries by design.
    let sql = "SELECT c.oid, c.oid::regclass::text, c.relkind = 'i'
                 FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
                WHERE (c.relkind IN ('r', 't', 'm') OR c.relkind = 'i' AND i.indisvalid AND i.indisready)
                  AND (c.relnamespace = 'counterx'::regnamespace
                       OR c.oid IN (SELECT reltoastrelid FROM pg_class
                                     WHERE relnamespace = 'counterx'::regnamespace)
                       OR i.indrelid IN (SELECT reltoastrelid FROM pg_class
                                          WHERE relnamespace = 'counterx'::regnamespace))
                ORDER BY c.oid";
    let mut checked = 0;
    for relation in client.query(sql, &[])? {
        let (oid, name, index): (u32, String, bool) =
            (relation.get(0), relation.get(1), relation.get(2));
        let check = match (index, standby) {
            (true, true) => "bt_index_check($1::oid, heapallindexed => true)",
            (true, false) => {
                "bt_index_check($1::oid, heapallindexed => true),
                 bt_index_parent_check($1::oid, heapallindexed => true, rootdescend => true)"
            }
            (false, _) => {
                "(SELECT string_agg(format('block %s, offset %s, attribute %s: %s',
                                           blkno, offnum, attnum, msg), E'\\n')
                    FROM verify_heapam($1::oid, check_toast => true))"
            }
        };
        let row = client
            .query_one(&format!("SELECT {check}"), &[&oid])
            .with_context(|| format!("amcheck of {name}"))?;
        if !index {
            let corrupt: Option<String> = row.get(0);
            ensure!(corrupt.is_none(), "amcheck of {name}: {corrupt:?}");
        }
        checked += 1;
    }
    // 16 logs, and the tables of totals and states, with an index each, are the least there is.
    ensure!(checked >= 36, "only {checked} relations to check");
    Ok(checked)
}
