//! Expressions of a trigger's condition, compiled, for row after row.

use super::memory::MemorySwitch;
use super::raw;
use pgrx::pg_sys;

/// Expressions that are evaluated together. They live in the memory context that they were compiled in.
pub struct Compiled {
    expressions: Vec<Expression>,
    context: *mut pg_sys::ExprContext,
    values: Vec<Value>,
}

/// Most are columns, for which there is nothing to compile.
#[derive(Clone, Copy)]
enum Expression {
    /// By its number, from 1 on.
    Column(i16),
    Other(*mut pg_sys::ExprState),
}

impl Expression {
    /// # Safety
    /// As of [`Compiled::of`], with its memory context as the current one.
    unsafe fn of(node: *mut pg_sys::Node) -> Self {
        // SAFETY: the caller's promise; it is looked at as what its tag says.
        unsafe {
            if (*node).type_ == pg_sys::NodeTag::T_Var {
                let column = (*node.cast::<pg_sys::Var>()).varattno;
                if column > 0 {
                    return Self::Column(column);
                }
            }
            let planned = pg_sys::expression_planner(node.cast());
            Self::Other(pg_sys::ExecInitExpr(planned, std::ptr::null_mut()))
        }
    }

    /// # Safety
    /// Within a guard; the context has a row of the table, and its memory is the current one.
    #[inline]
    unsafe fn evaluate(self, context: *mut pg_sys::ExprContext) -> Value {
        // SAFETY: the caller's promise; the row has as many columns.
        unsafe {
            let mut isnull = false;
            let datum = match self {
                Self::Column(column) => {
                    let slot = (*context).ecxt_scantuple;
                    if (*slot).tts_nvalid < column {
                        raw::slot_getsomeattrs_int(slot, column.into());
                    }
                    let at = column as usize - 1;
                    isnull = *(*slot).tts_isnull.add(at);
                    *(*slot).tts_values.add(at)
                }
                Self::Other(state) => match (*state).evalfunc {
                    Some(evaluate) => evaluate(state, context, &mut isnull),
                    None => return None,
                },
            };
            (!isnull).then_some(datum)
        }
    }
}

/// What an expression has come to; None: null.
pub type Value = Option<pg_sys::Datum>;

impl Compiled {
    /// Compiles expressions in the memory context that they are in, where they stay, as parts of what is
    /// compiled. Functions run as whoever is the current user now.
    ///
    /// # Safety
    /// The nodes are expressions over one table, and nobody else's; the context outlives this value.
    pub unsafe fn of(nodes: &[*mut pg_sys::Node], memory: pg_sys::MemoryContext) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let _switch = MemorySwitch::to(memory);
            let expressions = nodes.iter().map(|&node| Expression::of(node)).collect();
            Self {
                expressions,
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
        let (expressions, values, context) = (&self.expressions, &mut self.values, self.context);
        // SAFETY: the caller's promise; the expressions' variables are the columns of one table, which are
        // looked for in the scan's slot. One guard for all: nothing in it has to be dropped.
        let goes_on = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                (*context).ecxt_scantuple = slot;
                let memory = (*context).ecxt_per_tuple_memory;
                // Most expressions are columns, and leave nothing there.
                if !(*memory).isReset || !(*memory).firstchild.is_null() {
                    pg_sys::MemoryContextReset(memory);
                }
                let before = pg_sys::MemoryContextSwitchTo(memory);
                let mut goes_on = true;
                for (at, (expression, value)) in
                    expressions.iter().zip(values.iter_mut()).enumerate()
                {
                    *value = expression.evaluate(context);
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
