//! All that a call could change, as the database has it.

use anyhow::{Context, Result};
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::model::{Bounds, Model, Token};

/// What the calling session sees.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) model: Model,
    /// A fingerprint of all else, times and numbers included, and of who may do what.
    pub(super) rest: String,
}

/// Text is in hexadecimal: names have every kind of separator in them.
const STATE: &str = "
SELECT 'counter', encode(convert_to(name, 'UTF8'), 'hex'), value::text, NULL, NULL, NULL
  FROM public.counters
UNION ALL
SELECT 'type', name, min::text, max::text, NULL, NULL FROM counterx.type
UNION ALL
SELECT 'hold', encode(convert_to(name, 'UTF8'), 'hex'), amount::text, expired::text, NULL, NULL
  FROM public.counter_holds
UNION ALL
SELECT 'token', encode(convert_to(token, 'UTF8'), 'hex'),
       encode(convert_to(name, 'UTF8'), 'hex'), delta::text, value::text,
       coalesce(hold, false)::text
  FROM counterx.token
UNION ALL
SELECT 'rest', md5(concat(
         (SELECT string_agg(t::text, '|' ORDER BY name) FROM counterx.type t),
         (SELECT string_agg(h::text, '|' ORDER BY id) FROM counterx.hold h),
         (SELECT string_agg(t::text, '|' ORDER BY token) FROM counterx.token t),
         (SELECT string_agg(concat(oid, relname, relowner, relacl), '|' ORDER BY oid)
            FROM pg_class WHERE relnamespace IN ('counterx'::regnamespace, 'public'::regnamespace)),
         (SELECT string_agg(concat(oid, proname, proowner, proacl, prosrc), '|' ORDER BY oid)
            FROM pg_proc WHERE pronamespace IN ('counterx'::regnamespace, 'public'::regnamespace)),
         (SELECT string_agg(concat(oid, tgname, tgenabled), '|' ORDER BY oid) FROM pg_trigger)
       )), NULL, NULL, NULL, NULL";

/// Reads it, in one snapshot.
pub(super) fn read(client: &mut Client) -> Result<State> {
    let mut state = State {
        model: Model::default(),
        rest: String::new(),
    };
    for message in client
        .simple_query(STATE)
        .context("could not read the state")?
    {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        state.take(&row)?;
    }
    Ok(state)
}

impl State {
    fn take(&mut self, row: &SimpleQueryRow) -> Result<()> {
        let text = |index| row.get(index).unwrap_or_default();
        let small = |index| row.get(index).map(str::parse).transpose();
        let model = &mut self.model;
        match text(0) {
            "counter" => {
                model.counters.insert(unhex(text(1))?, text(2).parse()?);
            }
            "type" => {
                let bounds = Bounds {
                    min: small(2)?,
                    max: small(3)?,
                };
                model.types.insert(text(1).to_owned(), bounds);
            }
            "hold" if text(3) == "false" => {
                *model.held.entry(unhex(text(1))?).or_default() += text(2).parse::<i128>()?;
            }
            "token" => {
                let token = Token {
                    name: unhex(text(2))?,
                    delta: text(3).parse()?,
                    value: small(4)?,
                    is_hold: text(5) == "true",
                };
                model.tokens.insert(unhex(text(1))?, token);
            }
            "rest" => text(1).clone_into(&mut self.rest),
            _ => {}
        }
        Ok(())
    }

    /// A bounded counter that is out of its bounds.
    pub(super) fn out_of_bounds(&self) -> Option<&str> {
        self.model.counters.iter().find_map(|(name, &value)| {
            let (type_name, _) = name.split_once(':')?;
            let bounds = self.model.types.get(type_name)?;
            let low = bounds.min.is_some_and(|min| value < min.into());
            let high = bounds.max.is_some_and(|max| value > max.into());
            (low || high).then_some(name.as_str())
        })
    }
}

/// The text behind hexadecimal digits.
pub(super) fn unhex(hex: &str) -> Result<String> {
    Ok(String::from_utf8(unhex_bytes(hex)?)?)
}

/// The bytes behind hexadecimal digits.
pub(super) fn unhex_bytes(hex: &str) -> Result<Vec<u8>> {
    (0..hex.len())
        .step_by(2)
        .map(|at| {
            let digits = hex.get(at..at + 2).context("an odd number of digits")?;
            Ok(u8::from_str_radix(digits, 16)?)
        })
        .collect()
}
