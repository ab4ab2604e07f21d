//! The planner's callbacks.
//!
//! Nothing is handed on from one to the next: each reads the conditions from the clauses anew.

use crate::pg::compat::{self, ForeignPathCost};
use crate::query::fdw::condition::{self, Condition, NAME_COLUMN};
use crate::store::catalog;
use crate::store::tables;
use pgrx::{PgBox, PgList, pg_guard, pg_sys};
use std::ffi::c_void;
use std::ptr::null_mut;

/// Deltas that wait when nobody knows: about a second's worth.
const TYPICAL_PENDING: f64 = 1000.0;

/// `GetForeignRelSize`: how many counters there are, and how many the query wants.
#[pg_guard]
pub unsafe extern "C-unwind" fn estimate_size(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _table: pg_sys::Oid,
) {
    // SAFETY: the planner's own structures.
    unsafe {
        let (blocks, tuples) = size_of_totals();
        (*rel).pages = blocks;
        (*rel).tuples = tuples.max(1.0);
        declare_unique(rel);
        pg_sys::set_baserel_size_estimates(root, rel);
    }
}

/// Blocks and rows of `total`, in which nearly all counters are.
fn size_of_totals() -> (pg_sys::BlockNumber, f64) {
    let total = tables::open(catalog::shared().total);
    let (mut blocks, mut tuples, mut all_visible) = (0, 0.0, 0.0);
    // SAFETY: an open table; no widths are cached for it.
    unsafe {
        pg_sys::estimate_rel_size(
            total.as_ptr(),
            null_mut(),
            &mut blocks,
            &mut tuples,
            &mut all_visible,
        );
    }
    (blocks, tuples)
}

/// Tells the planner that no name comes twice, in the form in which it knows such a thing: a
/// unique index. It is a hypothetical one, which nobody tries to scan.
///
/// Without it, each name would be guessed to come hundreds of times.
///
/// # Safety
/// A relation that is being planned.
unsafe fn declare_unique(rel: *mut pg_sys::RelOptInfo) {
    // SAFETY: the node is zeroed, which is right for all members that are not set; it is allocated
    // where the relation is.
    unsafe {
        let one = |oid: pg_sys::Oid| {
            let array = pg_sys::palloc(size_of::<pg_sys::Oid>()).cast::<pg_sys::Oid>();
            array.write(oid);
            array
        };
        let columns = pg_sys::palloc(size_of::<i32>()).cast::<i32>();
        columns.write(NAME_COLUMN.into());
        let mut index = PgBox::<pg_sys::IndexOptInfo>::alloc_node(pg_sys::NodeTag::T_IndexOptInfo);
        index.rel = rel;
        index.ncolumns = 1;
        index.nkeycolumns = 1;
        index.indexkeys = columns;
        index.indexcollations = one(pg_sys::C_COLLATION_OID);
        index.opfamily = one(pg_sys::TEXT_BTREE_FAM_OID);
        index.opcintype = one(pg_sys::TEXTOID);
        index.unique = true;
        index.immediate = true;
        index.hypothetical = true;
        (*rel).indexlist = pg_sys::lappend((*rel).indexlist, index.into_pg().cast());
    }
}

/// `GetForeignPaths`: by the query's own conditions, and by those that a join can give.
#[pg_guard]
pub unsafe extern "C-unwind" fn add_paths(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _table: pg_sys::Oid,
) {
    // SAFETY: the planner's own structures.
    unsafe {
        add_path(root, rel, (*rel).lateral_relids);
        let mut done: Vec<pg_sys::Relids> = Vec::new();
        for outer in join_partners(root, rel) {
            if !done.iter().any(|&other| pg_sys::bms_equal(other, outer)) {
                add_path(root, rel, outer);
                done.push(outer);
            }
        }
    }
}

/// Adds the path that is possible once these other relations' rows are known.
///
/// # Safety
/// As of [`add_paths`].
unsafe fn add_path(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    required_outer: pg_sys::Relids,
) {
    // SAFETY: the planner's own structures.
    unsafe {
        let param_info = pg_sys::get_baserel_parampathinfo(root, rel, required_outer);
        let (rows, join_clauses) = if param_info.is_null() {
            ((*rel).rows, null_mut())
        } else {
            ((*param_info).ppi_rows, (*param_info).ppi_clauses)
        };
        let mut cost = scan_cost(root, rel, join_clauses);
        cost.rows = rows;
        let path = compat::create_foreignscan_path(root, rel, &cost, required_outer);
        pg_sys::add_path(rel, path.cast());
    }
}

/// What it costs to read the names that the clauses leave, and to check the clauses. `rows` are
/// those read.
///
/// # Safety
/// As of [`add_paths`].
unsafe fn scan_cost(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    join_clauses: *mut pg_sys::List,
) -> ForeignPathCost {
    // SAFETY: the planner's own structures; its cost settings are plain variables.
    unsafe {
        let (mut is_lookup, mut narrowing) = (false, null_mut());
        for clauses in [(*rel).baserestrictinfo, join_clauses] {
            for clause in PgList::<pg_sys::RestrictInfo>::from_pg(clauses).iter_ptr() {
                if let Some(condition) = condition_of(root, rel, clause) {
                    is_lookup |= condition.kind.is_lookup();
                    narrowing = pg_sys::lappend(narrowing, clause.cast());
                }
            }
        }
        let rows = (*rel).tuples
            * pg_sys::clauselist_selectivity(
                root,
                narrowing,
                (*rel).relid as i32,
                pg_sys::JoinType::JOIN_INNER,
                null_mut(),
            );
        let rows = rows.max(1.0);
        // A row of an index costs a part of a page: many are on the same one, or in memory.
        let indexed_row = pg_sys::cpu_index_tuple_cost + pg_sys::random_page_cost / 10.0;
        let (pending, totals) = if is_lookup {
            // A descent in each of the lane's indexes for each epoch, whose pages are in memory; and
            // a page of the totals, which is so more often than not.
            let total = pg_sys::random_page_cost / 4.0;
            (0.0, rows * (total + 400.0 * pg_sys::cpu_operator_cost))
        } else {
            let pending = TYPICAL_PENDING * (pg_sys::cpu_tuple_cost + pg_sys::cpu_index_tuple_cost);
            let totals = if narrowing.is_null() {
                f64::from((*rel).pages) * pg_sys::seq_page_cost
            } else {
                pg_sys::random_page_cost + rows * indexed_row
            };
            (pending, totals)
        };
        let check = (*rel).baserestrictcost;
        let startup = pending + check.startup;
        let per_row = pg_sys::cpu_tuple_cost + check.per_tuple;
        ForeignPathCost {
            rows,
            startup,
            total: startup + totals + rows * per_row,
        }
    }
}

/// The sets of other relations whose rows can tell us names.
///
/// # Safety
/// As of [`add_paths`].
unsafe fn join_partners(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
) -> Vec<pg_sys::Relids> {
    // SAFETY: the planner's own structures.
    unsafe {
        let mut clauses: Vec<_> = PgList::<pg_sys::RestrictInfo>::from_pg((*rel).joininfo)
            .iter_ptr()
            .collect();
        if (*rel).has_eclass_joins {
            let implied = pg_sys::generate_implied_equalities_for_column(
                root,
                rel,
                Some(is_name_member),
                null_mut(),
                (*rel).lateral_referencers,
            );
            clauses.extend(PgList::<pg_sys::RestrictInfo>::from_pg(implied).iter_ptr());
        }
        clauses
            .into_iter()
            .filter(|&clause| {
                pg_sys::join_clause_is_movable_to(clause, rel)
                    && condition_of(root, rel, clause).is_some()
            })
            .map(|clause| {
                let all = pg_sys::bms_union((*clause).clause_relids, (*rel).lateral_relids);
                pg_sys::bms_del_member(all, (*rel).relid as i32)
            })
            .filter(|&outer| pg_sys::bms_num_members(outer) > 0)
            .collect()
    }
}

/// Is this member of an equivalence class our name?
#[pg_guard]
unsafe extern "C-unwind" fn is_name_member(
    _root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _class: *mut pg_sys::EquivalenceClass,
    member: *mut pg_sys::EquivalenceMember,
    _arg: *mut c_void,
) -> bool {
    // SAFETY: the planner's own structures.
    unsafe { condition::is_name((*member).em_expr.cast(), rel) }
}

unsafe fn condition_of(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    clause: *mut pg_sys::RestrictInfo,
) -> Option<Condition> {
    // SAFETY: the planner's own structures.
    unsafe { condition::recognise(root, rel, (*clause).clause.cast()) }
}

/// `GetForeignPlan`: the operands become expressions of the plan, and how they are compared its
/// private list.
#[pg_guard]
pub unsafe extern "C-unwind" fn make_plan(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _table: pg_sys::Oid,
    _path: *mut pg_sys::ForeignPath,
    targets: *mut pg_sys::List,
    clauses: *mut pg_sys::List,
    outer_plan: *mut pg_sys::Plan,
) -> *mut pg_sys::ForeignScan {
    // SAFETY: the planner's own structures. The operands are copied, since the planner will go
    // through them and through the clauses separately.
    unsafe {
        let clauses = pg_sys::extract_actual_clauses(clauses, false);
        let (mut operands, mut kinds) = (null_mut(), null_mut());
        for clause in PgList::<pg_sys::Node>::from_pg(clauses).iter_ptr() {
            if let Some(condition) = condition::recognise(root, rel, clause) {
                let operand = pg_sys::copyObjectImpl(condition.operand.cast());
                operands = pg_sys::lappend(operands, operand);
                kinds = pg_sys::lappend_int(kinds, condition.kind.number());
            }
        }
        pg_sys::make_foreignscan(
            targets,
            clauses,
            (*rel).relid,
            operands,
            kinds,
            null_mut(),
            null_mut(),
            outer_plan,
        )
    }
}
