//! Expressions over the columns of a table: from the text that somebody writes to a checked one, and to the
//! condition of a trigger.
//!
//! To parse a text is to run what it says: a literal goes through the input function of its type, and that of a
//! domain in an array asks the domain's CHECK, which may be anybody's function. So the text is parsed once, by
//! whoever has become the table's owner, and the condition is made of what came of it, never of texts again.

use super::compat;
use super::error::{raise, report};
use super::relation::{ACCESS_SHARE, Relation};
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};
use std::ffi::{CStr, CString};

/// A parsed and checked expression, in the memory context that was current then.
pub struct Expression {
    node: *mut pg_sys::Node,
    text: String,
}

/// Of which version of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// As it was.
    Old,
    /// As it is now.
    New,
}

impl Of {
    fn alias(self) -> &'static CStr {
        match self {
            Self::Old => c"old",
            Self::New => c"new",
        }
    }

    /// The number of its range table entry in a trigger's condition.
    fn number(self) -> core::ffi::c_int {
        let number = match self {
            Self::Old => pg_sys::PRS2_OLD_VARNO,
            Self::New => pg_sys::PRS2_NEW_VARNO,
        };
        number as core::ffi::c_int
    }
}

impl Expression {
    /// Parses a text. The caller has become the table's owner: functions that are folded to a constant run.
    ///
    /// # Errors
    /// Raises what the parser raises; 42601 for what is more than an expression, 42P17 for one whose value
    /// is not the same at all times and in all sessions, 0A000 for system columns, whole rows and virtual
    /// generated columns.
    pub fn parse(table: &Relation, text: &str) -> Self {
        let node = parse(table, text);
        let expression = Self {
            node,
            text: text.to_owned(),
        };
        expression.check_columns(table);
        expression.check_is_immutable();
        expression
    }

    /// The expression that somebody has written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The type of its value.
    pub fn type_oid(&self) -> pg_sys::Oid {
        // SAFETY: a transformed expression.
        unsafe { pg_sys::exprType(self.node) }
    }

    /// Are there different texts that its collation takes for equal?
    pub fn is_nondeterministic(&self) -> bool {
        // SAFETY: a transformed expression; looks into the catalogs.
        unsafe {
            let collation = pg_sys::exprCollation(self.node);
            collation != pg_sys::InvalidOid && !pg_sys::get_collation_isdeterministic(collation)
        }
    }

    /// The columns that it looks at, by number.
    pub fn columns(&self) -> Vec<i16> {
        let mut columns = Vec::new();
        // SAFETY: the expression has one table, whose number is 1; the set lives in the current context.
        unsafe {
            let mut set = std::ptr::null_mut();
            pg_sys::pull_varattnos(self.node, 1, &mut set);
            let mut member = -1;
            loop {
                member = pg_sys::bms_next_member(set, member);
                if member < 0 {
                    return columns;
                }
                columns.push((member + pg_sys::FirstLowInvalidHeapAttributeNumber) as i16);
            }
        }
    }

    /// A copy over OLD or NEW, as it stands in the condition of a trigger.
    fn over(&self, of: Of) -> *mut pg_sys::Node {
        // SAFETY: a transformed expression, whose one table has the number 1; the copy is ours.
        unsafe {
            let copy: *mut pg_sys::Node = pg_sys::copyObjectImpl(self.node.cast()).cast();
            pg_sys::ChangeVarNodes(copy, 1, of.number(), 0);
            copy
        }
    }

    fn refuse(&self, code: PgSqlErrorCode, detail: String, hint: &str) -> ! {
        raise(
            report(
                code,
                format!("cannot track rows by the expression {}", self.text),
            )
            .set_detail(detail)
            .set_hint(hint),
        )
    }

    fn check_columns(&self, table: &Relation) {
        // SAFETY: the table is open.
        let attributes = unsafe { compat::attributes((*table.as_ptr()).rd_att) };
        for column in self.columns() {
            let index = usize::try_from(i32::from(column) - 1);
            let Some(attribute) = index.ok().and_then(|index| attributes.get(index)) else {
                self.refuse(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "It looks at the whole row, or at a system column.".to_owned(),
                    "Name the columns that it needs.",
                )
            };
            if attribute.attgenerated == b'v' as core::ffi::c_char {
                self.refuse(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "It looks at a virtual generated column, which triggers see no value of."
                        .to_owned(),
                    "Write the expression of that column instead, or make the column STORED.",
                );
            }
        }
    }

    /// What is computed from an old row later has to be what was computed from it when it was new.
    fn check_is_immutable(&self) {
        // SAFETY: a transformed expression, copied before it is planned; all in the current context.
        let (mutable, coerced) = unsafe {
            let copy = pg_sys::copyObjectImpl(self.node.cast());
            let planned = pg_sys::expression_planner(copy.cast());
            let text = pg_sys::nodeToString(planned.cast());
            let text = CStr::from_ptr(text).to_bytes();
            // A string constant is written as numbers, so this is a node and nothing else.
            let coerced = text.windows(12).any(|part| part == b"{COERCEVIAIO");
            (pg_sys::contain_mutable_functions(planned.cast()), coerced)
        };
        if mutable {
            self.refuse(
                PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
                "Its value is not the same at all times and in all sessions.".to_owned(),
                "Use immutable functions and operators. The day of a timestamptz depends on the time zone: write (created_at AT TIME ZONE 'UTC')::date.",
            );
        }
        if coerced {
            self.refuse(
                PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
                "It converts a value from or to text, which may depend on settings of the session."
                    .to_owned(),
                "Leave the cast away: integers, dates and others are possible as they are.",
            );
        }
    }
}

/// Expressions that a condition is made of, each of which stands in its text as a parameter.
#[derive(Default)]
pub struct Parts(Vec<*mut pg_sys::Node>);

impl Parts {
    /// What stands for an expression over OLD or NEW in the text.
    pub fn put(&mut self, expression: &Expression, of: Of) -> String {
        self.0.push(expression.over(of));
        format!("${}", self.0.len())
    }
}

/// The condition of a trigger, in the memory context that was current when it was made.
pub struct Condition {
    /// The tree.
    pub(super) node: *mut pg_sys::Node,
    /// OLD and NEW.
    pub(super) tables: *mut pg_sys::List,
}

impl Condition {
    /// Parses a text of our own, and puts the parts where it has parameters. Nothing of a part is parsed again.
    ///
    /// # Errors
    /// Raises what the parser raises.
    pub fn new(table: &Relation, text: &str, mut parts: Parts) -> Self {
        let Some((source, value)) = raw_expression(text) else {
            invalid(text)
        };
        // SAFETY: the trees live in the current context. The hook is called while the parts are there.
        unsafe {
            let state = pg_sys::make_parsestate(std::ptr::null_mut());
            (*state).p_sourcetext = source;
            for of in [Of::Old, Of::New] {
                let item = pg_sys::addRangeTableEntryForRelation(
                    state,
                    table.as_ptr(),
                    ACCESS_SHARE,
                    pg_sys::makeAlias(of.alias().as_ptr(), std::ptr::null_mut()),
                    false,
                    false,
                );
                pg_sys::addNSItemToQuery(state, item, false, true, true);
            }
            (*state).p_paramref_hook = Some(part_of);
            (*state).p_ref_hook_state = (&raw mut parts).cast();
            let node =
                pg_sys::transformExpr(state, value, pg_sys::ParseExprKind::EXPR_KIND_TRIGGER_WHEN);
            pg_sys::assign_expr_collations(state, node);
            let tables = (*state).p_rtable;
            pg_sys::free_parsestate(state);
            Self { node, tables }
        }
    }
}

/// What a parameter stands for.
#[pg_guard]
unsafe extern "C-unwind" fn part_of(
    state: *mut pg_sys::ParseState,
    parameter: *mut pg_sys::ParamRef,
) -> *mut pg_sys::Node {
    // SAFETY: called by the parser, with the state that has the parts.
    unsafe {
        let parts = &*(*state).p_ref_hook_state.cast::<Parts>();
        let number = usize::try_from((*parameter).number).unwrap_or_default();
        // The server says that there is no such parameter.
        let part = number.checked_sub(1).and_then(|at| parts.0.get(at));
        part.copied().unwrap_or(std::ptr::null_mut())
    }
}

fn invalid(text: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_SYNTAX_ERROR,
            format!("not an expression: {text}"),
        )
        .set_hint("Write a column, or an expression over the columns of the table."),
    )
}

/// The grammar's tree of an expression, and the text that it points into. None: that is more than an expression.
///
/// # Errors
/// Raises what the grammar raises.
fn raw_expression(text: &str) -> Option<(*const core::ffi::c_char, *mut pg_sys::Node)> {
    // A comment at the end of the text ends with the line.
    let query = CString::new(format!("SELECT ({text}\n)")).ok()?;
    // SAFETY: the parser's trees live in the current context, and so does the text; each node is looked at as what
    // its tag says.
    unsafe {
        let query = pg_sys::pstrdup(query.as_ptr());
        let statements = pg_sys::raw_parser(query, pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let select = only(statements)
            .map(|raw| (*raw.cast::<pg_sys::RawStmt>()).stmt)
            .filter(|stmt| (**stmt).type_ == pg_sys::NodeTag::T_SelectStmt)?;
        let select = &*select.cast::<pg_sys::SelectStmt>();
        let lists = [
            select.distinctClause,
            select.fromClause,
            select.groupClause,
            select.windowClause,
            select.valuesLists,
            select.sortClause,
            select.lockingClause,
        ];
        let others = !select.intoClause.is_null()
            || !select.whereClause.is_null()
            || !select.havingClause.is_null()
            || !select.limitOffset.is_null()
            || !select.limitCount.is_null()
            || !select.withClause.is_null()
            || select.op != pg_sys::SetOperation::SETOP_NONE;
        if others || lists.iter().any(|list| !list.is_null()) {
            return None;
        }
        let target = only(select.targetList)?;
        Some((query, (*target.cast::<pg_sys::ResTarget>()).val))
    }
}

fn parse(table: &Relation, text: &str) -> *mut pg_sys::Node {
    let Some((source, value)) = raw_expression(text) else {
        invalid(text)
    };
    // SAFETY: the parser's trees live in the current context.
    unsafe {
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        (*state).p_sourcetext = source;
        let item = pg_sys::addRangeTableEntryForRelation(
            state,
            table.as_ptr(),
            ACCESS_SHARE,
            std::ptr::null_mut(),
            false,
            true,
        );
        pg_sys::addNSItemToQuery(state, item, false, true, true);
        let node =
            pg_sys::transformExpr(state, value, pg_sys::ParseExprKind::EXPR_KIND_TRIGGER_WHEN);
        // The error of an unknown literal is of the next step: it is a text.
        let node = if pg_sys::exprType(node) == pg_sys::UNKNOWNOID {
            pg_sys::coerce_to_common_type(state, node, pg_sys::TEXTOID, c"counter_track".as_ptr())
        } else {
            node
        };
        pg_sys::assign_expr_collations(state, node);
        pg_sys::free_parsestate(state);
        node
    }
}

/// The only member of a list.
///
/// # Safety
/// A live list of pointers, or null.
unsafe fn only(list: *mut pg_sys::List) -> Option<*mut pg_sys::Node> {
    // SAFETY: the caller's promise.
    unsafe {
        (!list.is_null() && (*list).length == 1)
            .then(|| (*(*list).elements).ptr_value.cast::<pg_sys::Node>())
    }
}
