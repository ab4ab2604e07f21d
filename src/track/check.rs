//! Looks at a few groups of a track now and then: do their counters agree with their rows?
//!
//! Whatever made them differ without being noticed, sooner or later a group shows it. Only groups whose rows an
//! index finds are looked at: their key begins with a column, and so does an index.

use crate::pg::guc_scope::GucScope;
use crate::pg::memory::{MemoryArena, MemoryScope, MemorySwitch};
use crate::pg::query::for_each_row_as_of_active;
use crate::pg::relation::Relation;
use crate::pg::scan::RowFetch;
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::user::ActingAs;
use crate::store::totals::{self, Order};
use crate::track::compare;
use crate::track::fill::Locked;
use crate::track::tables::{self, Catalogs, Leading};
use counterx_core::names::NameRange;
use counterx_core::parts::{self, Part};
use counterx_core::tally::Tally;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// A group with more rows than that, or one whose first part has so many, costs too much to be looked at.
const MOST_ROWS: usize = 100_000;
/// Blocks of a table from which a row is chosen.
const BLOCKS: f64 = 8.0;

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Groups that were compared.
    pub groups: usize,
    /// What was wrong with one of them.
    pub wrong: Option<String>,
}

/// Compares up to so many groups of a track, at random ones, by one snapshot. In a READ COMMITTED transaction.
///
/// # Errors
/// Those of the expressions.
pub fn some_groups(
    catalogs: &Catalogs,
    table: pg_sys::Oid,
    type_name: &str,
    groups: usize,
) -> Checked {
    let mut checked = Checked::default();
    let Some(root) = Relation::open_for_read(table) else {
        return checked;
    };
    let Some(locked) = Locked::take(catalogs, table, false) else {
        return checked;
    };
    let function = tables::row_function(catalogs);
    let Some(leading) = compare::leading_column(&root, function, type_name.as_bytes())
        .and_then(|column| tables::indexed_column(catalogs, table, column))
    else {
        return checked;
    };
    let look = Look {
        root: &root,
        leaves: locked.leaves(),
        function,
        type_name: type_name.as_bytes(),
        leading,
        name: tables::full_name(catalogs, table),
    };
    let latest = LatestSnapshot::take();
    for name in look.some_names(groups, latest.as_ptr()) {
        pgrx::check_for_interrupts!();
        let Some(counted) = look.count(&name) else {
            continue;
        };
        let mut one = NameRange::all();
        one.equal_to(&name);
        let recorded = compare::recorded_in(&one, latest.as_ptr());
        let recorded = recorded
            .first()
            .map_or_else(Tally::default, |(_, tally)| *tally);
        checked.groups += 1;
        if counted != recorded {
            checked.wrong = Some(format!(
                "counter \"{}\" was {} of {} rows, and its rows came to {} of {}",
                String::from_utf8_lossy(&name),
                recorded.value,
                recorded.uses,
                counted.value,
                counted.uses
            ));
            break;
        }
    }
    drop(latest);
    if !locked.is_all(catalogs, table) {
        // What has come in between is in some of the numbers.
        checked.wrong = None;
    }
    checked
}

/// What is looked at.
struct Look<'a> {
    root: &'a Relation,
    leaves: &'a [Relation],
    function: pg_sys::Oid,
    type_name: &'a [u8],
    leading: Leading,
    /// For queries.
    name: String,
}

impl Look<'_> {
    /// That of a row at random, and those of counters that follow it.
    fn some_names(&self, groups: usize, snapshot: pg_sys::Snapshot) -> Vec<Vec<u8>> {
        let mut names = BTreeSet::new();
        let blocks: f64 = self
            .leaves
            .iter()
            .map(|leaf| f64::from(leaf.blocks()))
            .sum();
        let percent = (100.0 * BLOCKS / blocks.max(1.0)).min(100.0);
        let query = format!(
            "SELECT t.tableoid, t.ctid FROM {} t TABLESAMPLE SYSTEM ({percent}) ORDER BY random() LIMIT 1",
            self.name
        );
        self.for_each_share(&query, &[], |name, _| {
            names.insert(name.to_vec());
        });
        let mut range = compare::names_of(self.type_name);
        if let Some(first) = names.first() {
            range.at_least(first);
        }
        // SAFETY: it is the caller's, and active.
        let _all = unsafe {
            totals::visit(&range, Order::ByName, snapshot, |name, _| {
                names.insert(name.to_vec());
                if names.len() < groups {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        };
        names.into_iter().take(groups).collect()
    }

    /// What the rows of a group come to. None: that costs too much, or its name does not say which rows they are.
    fn count(&self, name: &[u8]) -> Option<Tally> {
        let (_, parts) = parts::split(name)?;
        let Leading { column, type_name } = &self.leading;
        // One more shows that there are too many.
        let limit = MOST_ROWS + 1;
        let select = format!("SELECT t.tableoid, t.ctid FROM {} t", self.name);
        let mut tally = Tally::default();
        let mut add = |of: &[u8], value| {
            if of == name {
                tally += Tally::of(value, 1);
            }
        };
        let rows = match parts.first()? {
            Part::Rest(_) => return None,
            Part::Null => {
                let query = format!("{select} WHERE t.{column} IS NULL LIMIT {limit}");
                self.for_each_share(&query, &[], &mut add)
            }
            Part::Text(text) => {
                let query = format!(
                    "{select} WHERE t.{column} = convert_from($1, getdatabaseencoding())::{type_name} LIMIT {limit}"
                );
                self.for_each_share(&query, &[text.to_vec().into()], &mut add)
            }
        };
        (rows <= MOST_ROWS).then_some(tally)
    }

    /// Hands over each row's group, and what it adds to it. Returns the number of rows.
    fn for_each_share(
        &self,
        query: &str,
        arguments: &[DatumWithOid],
        mut take: impl FnMut(&[u8], i64),
    ) -> usize {
        // There is an index, whatever the table's statistics say.
        let _index = GucScope::enter(&[(c"enable_seqscan", c"off")]);
        let mut found = Vec::new();
        {
            let _owner = ActingAs::owner_of(self.root);
            for_each_row_as_of_active(query, arguments, |row| {
                found.extend(row.get::<pg_sys::Oid>(1).zip(row.get(2)));
            });
        }
        let rows = found.len();
        for leaf in self.leaves {
            let _owner = ActingAs::owner_of(leaf);
            let here = found.iter().filter(|(of, _)| *of == leaf.oid());
            // SAFETY: the current context outlives this call.
            unsafe {
                let memory = pg_sys::CurrentMemoryContext;
                let _scope = MemoryScope::enter(memory);
                let memory = pg_sys::CurrentMemoryContext;
                let counting = compare::counting_of(leaf, self.function, self.type_name, memory);
                let Some(mut counting) = counting else {
                    continue;
                };
                let arena = MemoryArena::below(memory);
                let mut fetch = RowFetch::new(leaf);
                for &(_, tid) in here {
                    arena.reset();
                    let Some(row) = fetch.get(tid) else { continue };
                    let _switch = MemorySwitch::to(arena.as_ptr());
                    if let Some(share) = counting.share(row.slot()) {
                        take(share.name, share.value);
                    }
                }
            }
        }
        rows
    }
}
