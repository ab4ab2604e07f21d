//! The functions of the extension, as the catalog has them: a new one is tried without being named.

use anyhow::{Result, ensure};
use postgres::Client;
use rand::RngExt;
use rand::rngs::StdRng;

use super::values::{self, Value};

/// A function that SQL can call.
#[derive(Clone, Debug)]
pub(super) struct Function {
    /// Where it is; not quoted, as no schema here needs it.
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) arguments: Vec<Argument>,
    /// The last argument stands for any number of values, each of any type.
    pub(super) variadic: bool,
    /// How many arguments, from the end, may be left out.
    pub(super) defaults: usize,
    /// As `regprocedure` shows it.
    pub(super) signature: String,
    /// May everybody call it?
    pub(super) public: bool,
    pub(super) returns: String,
    pub(super) security_definer: bool,
    /// Null for a null argument, and not called then.
    pub(super) strict: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Argument {
    pub(super) name: String,
    pub(super) type_name: String,
}

/// Everything that CREATE EXTENSION has made and SQL can call.
pub(super) fn all(client: &mut Client) -> Result<Vec<Function>> {
    let rows = client.query(
        "SELECT n.nspname::text, p.proname::text, p.pronargdefaults::integer,
                p.oid::regprocedure::text,
                has_function_privilege('public', p.oid, 'EXECUTE'),
                p.prorettype::regtype::text, p.prosecdef,
                ARRAY(SELECT coalesce(quote_ident(p.proargnames[i + 1]), '') FROM generate_series(0, p.pronargs - 1) i),
                ARRAY(SELECT p.proargtypes[i]::regtype::text FROM generate_series(0, p.pronargs - 1) i),
                p.proisstrict, p.provariadic <> 0
           FROM pg_depend d
           JOIN pg_proc p ON p.oid = d.objid
           JOIN pg_namespace n ON n.oid = p.pronamespace
          WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND p.prokind = 'f'
            AND d.refclassid = 'pg_extension'::regclass
            AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
          ORDER BY 4",
        &[],
    )?;
    ensure!(!rows.is_empty(), "the extension has no functions");
    let functions = rows.into_iter().map(|row| {
        let (names, types): (Vec<String>, Vec<String>) = (row.get(7), row.get(8));
        let arguments = names.into_iter().zip(types);
        Function {
            variadic: row.get(10),
            schema: row.get(0),
            name: row.get(1),
            defaults: usize::try_from(row.get::<_, i32>(2)).unwrap_or_default(),
            signature: row.get(3),
            public: row.get(4),
            returns: row.get(5),
            security_definer: row.get(6),
            strict: row.get(9),
            arguments: arguments
                .map(|(name, type_name)| match type_name.as_str() {
                    // Whichever: a text has more that is odd than others.
                    "\"any\"" => Argument {
                        name,
                        type_name: "text".to_owned(),
                    },
                    _ => Argument { name, type_name },
                })
                .collect(),
        }
    });
    Ok(functions.collect())
}

/// A function and what it is called with.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) function: &'a Function,
    /// Of those at the end, some may be left out.
    pub(super) arguments: Vec<Value>,
}

impl<'a> Call<'a> {
    /// With arguments of the right types and anything else wrong.
    pub(super) fn random(function: &'a Function, rng: &mut StdRng) -> Self {
        let given = function.arguments.len() - rng.random_range(0..=function.defaults);
        let arguments = function.arguments[..given]
            .iter()
            .map(|argument| values::any(&argument.type_name, &argument.name, &function.name, rng))
            .collect();
        Self {
            function,
            arguments,
        }
    }

    /// With arguments that nothing is wrong with.
    pub(super) fn usual(function: &'a Function) -> Self {
        let arguments = function.arguments.iter();
        let arguments = arguments.map(|argument| values::usual(&argument.type_name));
        Self {
            function,
            arguments: arguments.collect(),
        }
    }

    /// With NULL for every argument.
    pub(super) fn nulls(function: &'a Function) -> Self {
        let arguments = vec![Value::Null; function.arguments.len()];
        Self {
            function,
            arguments,
        }
    }

    /// The argument, when it was given.
    pub(super) fn argument(&self, index: usize) -> Option<&Value> {
        self.arguments.get(index)
    }

    /// The arguments in SQL.
    pub(super) fn values(&self) -> Vec<String> {
        let types = self.function.arguments.iter();
        self.arguments
            .iter()
            .zip(types)
            .map(|(value, argument)| value.sql(&argument.type_name))
            .collect()
    }

    /// `schema.function(...)`, of these expressions.
    pub(super) fn of(&self, values: &[String]) -> String {
        let Function { schema, name, .. } = self.function;
        format!("{schema}.{name}({})", values.join(", "))
    }

    /// The call with the arguments in their places.
    pub(super) fn sql(&self) -> String {
        self.of(&self.values())
    }

    /// The call with the arguments by name, last one first; but an array for any number of them stays last.
    pub(super) fn sql_by_name(&self) -> String {
        let last = self.function.arguments.len().wrapping_sub(1);
        let names = self.function.arguments.iter().enumerate();
        let mut values: Vec<String> = self
            .values()
            .into_iter()
            .zip(names)
            .map(|(value, (index, Argument { name, .. }))| {
                if self.function.variadic && index == last {
                    format!("VARIADIC {name} => ARRAY[{value}]")
                } else {
                    format!("{name} => {value}")
                }
            })
            .collect();
        if !self.function.variadic {
            values.reverse();
        }
        self.of(&values)
    }

    /// The types of the arguments that are given.
    pub(super) fn types(&self) -> Vec<&str> {
        let arguments = self.function.arguments.iter();
        arguments
            .take(self.arguments.len())
            .map(|argument| argument.type_name.as_str())
            .collect()
    }
}
