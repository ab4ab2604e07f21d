//! Conditions on the name: which ones narrow what has to be read, and to what.

use counterx_core::names::{NameRange, like_prefix};
use pgrx::{PgList, pg_sys};

/// The column `name` of the foreign table.
pub const NAME_COLUMN: i16 = 1;

/// How a name is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Equal,
    AnyOf,
    Less,
    AtMost,
    More,
    AtLeast,
    Prefix,
    Like,
}

impl Kind {
    /// By number, as a plan has it.
    const ALL: [Self; 8] = [
        Self::Equal,
        Self::AnyOf,
        Self::Less,
        Self::AtMost,
        Self::More,
        Self::AtLeast,
        Self::Prefix,
        Self::Like,
    ];

    /// Its number in a plan.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The one with this number.
    pub fn of_number(number: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    fn of_function(function: pg_sys::Oid) -> Option<Self> {
        match function.to_u32() {
            pg_sys::F_TEXTEQ => Some(Self::Equal),
            pg_sys::F_TEXT_LT => Some(Self::Less),
            pg_sys::F_TEXT_LE => Some(Self::AtMost),
            pg_sys::F_TEXT_GT => Some(Self::More),
            pg_sys::F_TEXT_GE => Some(Self::AtLeast),
            pg_sys::F_STARTS_WITH => Some(Self::Prefix),
            pg_sys::F_TEXTLIKE => Some(Self::Like),
            _ => None,
        }
    }

    /// The same with its sides exchanged.
    fn commuted(self) -> Option<Self> {
        match self {
            Self::Equal => Some(Self::Equal),
            Self::Less => Some(Self::More),
            Self::AtMost => Some(Self::AtLeast),
            Self::More => Some(Self::Less),
            Self::AtLeast => Some(Self::AtMost),
            Self::AnyOf | Self::Prefix | Self::Like => None,
        }
    }

    /// Does it compare bytes in this collation? Equality and prefixes do in all deterministic
    /// ones, the order in "C" alone.
    fn is_bytewise(self, collation: pg_sys::Oid) -> bool {
        match collation {
            pg_sys::C_COLLATION_OID => true,
            pg_sys::InvalidOid => false,
            _ => match self {
                Self::Less | Self::AtMost | Self::More | Self::AtLeast => false,
                // SAFETY: a look-up in the system cache.
                Self::Equal | Self::AnyOf | Self::Prefix | Self::Like => unsafe {
                    pg_sys::get_collation_isdeterministic(collation)
                },
            },
        }
    }

    /// Does it leave single names?
    pub fn is_lookup(self) -> bool {
        matches!(self, Self::Equal | Self::AnyOf)
    }

    /// What stands between the name and the operand.
    pub fn operator(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::AnyOf => "= ANY",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
            Self::Prefix => "^@",
            Self::Like => "~~",
        }
    }

    /// Narrows a range; not for [`Kind::AnyOf`], whose operand is an array.
    pub fn narrow(self, range: &mut NameRange, operand: &[u8]) {
        match self {
            Self::Equal => range.equal_to(operand),
            Self::Less => range.less_than(operand),
            Self::AtMost => range.at_most(operand),
            Self::More => range.more_than(operand),
            Self::AtLeast => range.at_least(operand),
            Self::Prefix => range.starting_with(operand),
            Self::Like => match like_prefix(operand) {
                (name, true) => range.equal_to(&name),
                (prefix, false) => range.starting_with(&prefix),
            },
            Self::AnyOf => {}
        }
    }
}

/// A condition that narrows the names.
pub struct Condition {
    /// How.
    pub kind: Kind,
    /// To what: an expression that does not depend on the table's rows.
    pub operand: *mut pg_sys::Node,
}

/// Reads a clause as a condition on the name of this relation.
///
/// # Safety
/// Called by the planner, with a clause and a relation of the query at hand.
pub unsafe fn recognise(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    clause: *mut pg_sys::Node,
) -> Option<Condition> {
    // SAFETY: a node's tag says what it is; expressions are made of valid nodes.
    unsafe {
        let (function, collation, args, is_array) = match (*clause).type_ {
            pg_sys::NodeTag::T_OpExpr => {
                let clause = clause.cast::<pg_sys::OpExpr>();
                pg_sys::set_opfuncid(clause);
                (
                    (*clause).opfuncid,
                    (*clause).inputcollid,
                    (*clause).args,
                    false,
                )
            }
            pg_sys::NodeTag::T_ScalarArrayOpExpr => {
                let clause = clause.cast::<pg_sys::ScalarArrayOpExpr>();
                if !(*clause).useOr {
                    return None;
                }
                pg_sys::set_sa_opfuncid(clause);
                (
                    (*clause).opfuncid,
                    (*clause).inputcollid,
                    (*clause).args,
                    true,
                )
            }
            pg_sys::NodeTag::T_FuncExpr => {
                let clause = clause.cast::<pg_sys::FuncExpr>();
                if (*clause).funcid.to_u32() != pg_sys::F_STARTS_WITH {
                    return None;
                }
                (
                    (*clause).funcid,
                    (*clause).inputcollid,
                    (*clause).args,
                    false,
                )
            }
            _ => return None,
        };
        let kind = match (Kind::of_function(function)?, is_array) {
            (kind, false) => kind,
            (Kind::Equal, true) => Kind::AnyOf,
            _ => return None,
        };
        if !kind.is_bytewise(collation) {
            return None;
        }
        let args = PgList::<pg_sys::Node>::from_pg(args);
        let (left, right) = (args.get_ptr(0)?, args.get_ptr(1)?);
        let (kind, operand) = if is_name(left, rel) {
            (kind, right)
        } else if is_name(right, rel) {
            (kind.commuted()?, left)
        } else {
            return None;
        };
        let depends_on_row =
            pg_sys::bms_is_member((*rel).relid as i32, pg_sys::pull_varnos(root, operand));
        if depends_on_row || pg_sys::contain_volatile_functions(operand) {
            return None;
        }
        Some(Condition { kind, operand })
    }
}

/// Is this the column `name` of the relation?
///
/// # Safety
/// As of [`recognise`].
pub unsafe fn is_name(mut node: *mut pg_sys::Node, rel: *mut pg_sys::RelOptInfo) -> bool {
    // SAFETY: as of recognise().
    unsafe {
        // As varchar, it is still the same bytes.
        while (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        if (*node).type_ != pg_sys::NodeTag::T_Var {
            return false;
        }
        let var = &*node.cast::<pg_sys::Var>();
        var.varno as u32 == (*rel).relid && var.varattno == NAME_COLUMN && var.varlevelsup == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_keeps_the_kind() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_number(kind.number()), Some(kind));
        }
        assert_eq!(Kind::of_number(-1), None);
        assert_eq!(Kind::of_number(8), None);
    }
}
