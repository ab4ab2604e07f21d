//! Expressions of a trigger's condition, compiled, for row after row.

use super::memory::MemorySwitch;
use pgrx::pg_sys;

/// Expressions that are evaluated together. They live in the memory context that they were compiled in.
pub struct Compiled {
    states: Vec<*mut pg_sys::ExprState>,
    context: *mut pg_sys::ExprContext,
    values: Vec<Value>,
}

/// What an expression has come to; None: null.
pub type Value = Option<pg_sys::Datum>;

impl Compiled {
    /// Compiles expressions in a memory context, where they stay. Functions run as whoever is the current
    /// user now.
    ///
    /// # Safety
    /// The nodes are expressions over one table; the context outlives this value.
    pub unsafe fn of(nodes: &[*mut pg_sys::Node], memory: pg_sys::MemoryContext) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let _switch = MemorySwitch::to(memory);
            let states = nodes
                .iter()
                .map(|&node| {
                    let copy = pg_sys::copyObjectImpl(node.cast());
                    let planned = pg_sys::expression_planner(copy.cast());
                    pg_sys::ExecInitExpr(planned, std::ptr::null_mut())
                })
                .collect();
            Self {
                states,
                context: pg_sys::CreateStandaloneExprContext(),
                values: vec![None; nodes.len()],
            }
        }
    }

    /// The values for the row in a slot; they live until the next row. `first` has to be true for the others
    /// to be looked at, if it is asked for: an expression may fail for a row that a condition leaves out.
    ///
    /// # Safety
    /// The slot has a row of the table.
    pub unsafe fn evaluate(
        &mut self,
        slot: *mut pg_sys::TupleTableSlot,
        is_condition: bool,
    ) -> Option<&[Value]> {
        let (states, values, context) = (&self.states, &mut self.values, self.context);
        // SAFETY: the caller's promise; the expressions' variables are the columns of one table, which are
        // looked for in the scan's slot. One guard for all: nothing in it has to be dropped.
        let goes_on = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                (*context).ecxt_scantuple = slot;
                let memory = (*context).ecxt_per_tuple_memory;
                pg_sys::MemoryContextReset(memory);
                let before = pg_sys::MemoryContextSwitchTo(memory);
                let mut goes_on = true;
                for (at, (&state, value)) in states.iter().zip(values.iter_mut()).enumerate() {
                    let mut isnull = false;
                    let datum = match (*state).evalfunc {
                        Some(evaluate) => evaluate(state, context, &mut isnull),
                        None => pg_sys::Datum::null(),
                    };
                    *value = (!isnull).then_some(datum);
                    if at == 0 && is_condition && !value.is_some_and(|value| value.value() != 0) {
                        goes_on = false;
                        break;
                    }
                }
                pg_sys::MemoryContextSwitchTo(before);
                goes_on
            })
        };
        goes_on.then_some(&self.values)
    }
}
