//! Odd values of every type that a function of ours takes.
//!
//! Each knows how it is written in SQL and, where the model has to understand it, what it means.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt, seq::IndexedRandom};

/// An argument.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Text(String),
    /// So many times this text: megabytes that need not be written out.
    Repeated(&'static str, usize),
    Number(i64),
    Names(Array<String>),
    Numbers(Array<i64>),
    /// A JSON object, its keys in the order written; a key may come twice.
    Object(Vec<(String, Member)>),
    /// SQL that does not even make a value of the type.
    Refused(String),
    /// SQL of a value that the model need not understand.
    Other(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array<T> {
    pub(super) elements: Vec<Option<T>>,
    pub(super) dimensions: usize,
    /// The first index, which nothing may depend on.
    pub(super) lower: i32,
}

/// A member of a JSON object, as written, and what it means.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) json: String,
    pub(super) delta: Delta,
}

/// What a JSON value is as a delta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Delta {
    Whole(i64),
    TooLarge,
    NotWhole,
}

/// Names that are valid, and as odd as they can be. Calls must meet the same ones again and again,
/// so there are not too many.
const NAMES: &[&str] = &[
    "a",
    "A",
    "a ",
    " a",
    "\u{e9}",
    "e\u{301}",
    "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    "\u{202e}gnp.exe",
    "\u{1f44d}\u{1f3fd}",
    "\u{10ffff}",
    "\u{feff}",
    "\u{1}",
    "\u{7f}",
    "new\nline",
    "\t",
    "'",
    "''; DROP TABLE counterx.total; --",
    "\"; SELECT 1; --",
    "\\",
    "back\\slash\\'",
    "$$",
    "$1",
    "%",
    "%s%n",
    "_",
    "a_b%",
    ":",
    "::",
    "a:b:c",
    "stock:",
    "stock:a",
    "stock:b",
    "limit:a",
    "limit:%",
    "counterx.total",
    "pg_catalog.pg_class",
    "NULL",
    "{a,b}",
    "{\"a\": 1}",
    "(1,2)",
    "0",
    "-1",
];

/// Texts that no counter can be called.
const WILD: &[&str] = &["", "", "x", "\u{e9}"];

/// What the functions for types are asked for.
const TYPES: &[&str] = &[
    "stock",
    "stock",
    "limit",
    "limit",
    "b",
    "%",
    "'",
    "\\",
    "1",
    "\"",
    "stock:",
    "two words",
    "\u{e9}",
    "pg_type",
    "-",
    "",
];

const TOKENS: &[&str] = &[
    "t",
    "T",
    "t ",
    "\u{e9}",
    "'",
    "\\",
    "%",
    "order:1",
    "order:2",
    "order:3",
    "\u{1f44d}",
];

const NUMBERS: &[i64] = &[
    0,
    0,
    1,
    1,
    1,
    -1,
    2,
    3,
    5,
    7,
    -3,
    10,
    100,
    -100,
    1 << 31,
    -(1 << 31) - 1,
    1 << 53,
    1 << 62,
    -(1 << 62),
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    i64::MIN + 1,
];

const NO_BIGINTS: &[&str] = &[
    "9223372036854775808",
    "'9223372036854775808'::bigint",
    "-9223372036854775809",
    "'1e3'::bigint",
    "''::bigint",
    "' x'::bigint",
    "'NaN'::numeric::bigint",
    "'Infinity'::numeric::bigint",
    "'-Infinity'::float8::bigint",
    "'1; DROP TABLE x'::bigint",
];

const NO_ARRAYS: &[&str] = &[
    "'{1,2'::{}",
    "'{{1},{2,3}}'::{}",
    "'x'::{}",
    "'{\"\\u0000'::{}",
    "'[3:1]={1}'::{}",
    "'{1,2} tail'::{}",
];

const NO_JSON: &[&str] = &[
    "'{'::jsonb",
    "''::jsonb",
    "'{\"a\": 01}'::jsonb",
    "'{\"a\": NaN}'::jsonb",
    "'{\"a\\u0000b\": 1}'::jsonb",
    "'{\"\\ud800\": 1}'::jsonb",
    "'{\"\\udc00\\ud800\": 1}'::jsonb",
    "'{\"a\": 1e999999}'::jsonb",
    "'{a: 1}'::jsonb",
    "'{\"a\": 1,}'::jsonb",
];

/// JSON that is no object of whole numbers, or one with something in it that is none.
const ODD_JSON: &[&str] = &[
    "'[]'::jsonb",
    "'[1, 2]'::jsonb",
    "'null'::jsonb",
    "'1'::jsonb",
    "'\"a\"'::jsonb",
    "'true'::jsonb",
    "'[[{\"a\": 1}]]'::jsonb",
    "'{\"a\": {\"b\": 1}}'::jsonb",
    "'{\"a\": [1]}'::jsonb",
    "'{\"min\": 0, \"max\": 1e400}'::jsonb",
    "'{\"min\": -1.5}'::jsonb",
    "'{\"min\": null, \"max\": null, \"description\": null}'::jsonb",
    "'{\"min\": 0}'::jsonb",
    "'{\"max\": 9223372036854775807}'::jsonb",
    "'{\"max\": 1e2, \"min\": -0.0}'::jsonb",
    "'{\"description\": \"\\u00e9 \\ud83d\\udc4d\"}'::jsonb",
    "'{\"description\": 1}'::jsonb",
    "'{\"Min\": 0}'::jsonb",
    "('{\"a\": ' || repeat('[', 1000) || repeat(']', 1000) || '}')::jsonb",
    "('{\"min\": ' || repeat('9', 1000) || '}')::jsonb",
    "('{\"description\": \"' || repeat('x', 100000) || '\"}')::jsonb",
];

/// None between a moment and many minutes: it must not matter how long a run takes.
const INTERVALS: &[&str] = &[
    "'15 minutes'",
    "'1 day'",
    "'1 month'",
    "'1 microsecond'",
    "'0'",
    "'-1 microsecond'",
    "'-1 month'",
    "'1 month -30 days'",
    "'1 day -24 hours'",
    "'178000000 years'",
    "'-178000000 years'",
    "'294276 years'",
    "'P1Y2M3DT4H'",
    "'2147483647 days'",
    "'-2147483648 months'",
];

const NO_INTERVALS: &[&str] = &[
    "'x'::interval",
    "''::interval",
    "'999999999999 years'::interval",
    "'1 fortnight'::interval",
];

const TIME: &str = "timestamp with time zone";

/// Long ago or far off: what a history says of these times does not depend on how long a run takes.
const TIMES: &[&str] = &[
    "'2000-01-01 00:00+00'",
    "'2020-02-29 23:59:59.999999+00'",
    "'-infinity'",
    "'infinity'",
    "'294276-12-31 23:59:59.999999+00'",
    "'4714-11-24 00:00:00+00 BC'",
    "'0001-01-01 00:00+00 BC'",
];

const NO_TIMES: &[&str] = &[
    "'x'::timestamptz",
    "''::timestamptz",
    "'294277-01-01 00:00+00'::timestamptz",
    "'2020-02-30'::timestamptz",
];

/// What the generator can make, for a report of what it cannot.
pub(super) fn knows(type_name: &str) -> bool {
    matches!(
        type_name,
        "text"
            | "text[]"
            | "bigint"
            | "bigint[]"
            | "integer"
            | "jsonb"
            | "interval"
            | "boolean"
            | TIME
    )
}

/// A value of a type for an argument of this name.
pub(super) fn any(type_name: &str, argument: &str, function: &str, rng: &mut StdRng) -> Value {
    if rng.random_ratio(1, 25) {
        return Value::Null;
    }
    match type_name {
        "text" => text(argument, function, rng),
        "bigint" => bigint(rng),
        "integer" => integer(rng),
        "text[]" => names(rng),
        "bigint[]" => numbers(rng),
        "jsonb" => json(rng),
        "interval" if rng.random_ratio(1, 10) => refused(NO_INTERVALS, rng),
        "interval" => Value::Other(pick(INTERVALS, rng).to_owned()),
        "boolean" => Value::Other(pick(&["true", "false"], rng).to_owned()),
        TIME if rng.random_ratio(1, 10) => refused(NO_TIMES, rng),
        TIME => Value::Other(pick(TIMES, rng).to_owned()),
        // One that the server makes of most texts, or refuses.
        _ => Value::Null,
    }
}

/// A value that nothing is wrong with.
pub(super) fn usual(type_name: &str) -> Value {
    match type_name {
        "text" => Value::Text("a".to_owned()),
        "bigint" | "integer" => Value::Number(1),
        "text[]" => Value::Names(plain(vec![Some("a".to_owned())])),
        "bigint[]" => Value::Numbers(plain(vec![Some(1)])),
        "jsonb" => Value::Object(vec![usual_member("a")]),
        "interval" => Value::Other("'1 hour'".to_owned()),
        "boolean" => Value::Other("true".to_owned()),
        TIME => Value::Other("'2020-01-01 00:00+00'".to_owned()),
        _ => Value::Null,
    }
}

/// Values at the limits of a type, and beyond those of names.
pub(super) fn limits(type_name: &str) -> Vec<Value> {
    let names = ["".to_owned(), "x".repeat(256), "x".repeat(255)];
    match type_name {
        "text" => names.map(Value::Text).to_vec(),
        "bigint" => [i64::MIN, -1, 0, i64::MAX].map(Value::Number).to_vec(),
        "integer" => [i32::MIN, -1, 0, i32::MAX]
            .map(|number| Value::Number(number.into()))
            .to_vec(),
        "text[]" => names
            .map(Some)
            .into_iter()
            .chain([None])
            .map(|name| Value::Names(plain(vec![name])))
            .collect(),
        "bigint[]" => vec![
            Value::Numbers(plain(vec![])),
            Value::Numbers(plain(vec![None])),
        ],
        "jsonb" => names
            .iter()
            .map(|name| Value::Object(vec![usual_member(name)]))
            .collect(),
        _ => Vec::new(),
    }
}

fn plain<T>(elements: Vec<Option<T>>) -> Array<T> {
    Array {
        elements,
        dimensions: 1,
        lower: 1,
    }
}

fn usual_member(key: &str) -> (String, Member) {
    let member = Member {
        json: "1".to_owned(),
        delta: Delta::Whole(1),
    };
    (key.to_owned(), member)
}

fn pick<'a>(from: &[&'a str], rng: &mut StdRng) -> &'a str {
    from.choose(rng).copied().unwrap_or_default()
}

fn refused(from: &[&str], rng: &mut StdRng) -> Value {
    Value::Refused(pick(from, rng).to_owned())
}

fn text(argument: &str, function: &str, rng: &mut StdRng) -> Value {
    if rng.random_ratio(1, 20) {
        return long(rng);
    }
    if function.starts_with("counter_type_") && argument == "name" {
        return Value::Text(pick(TYPES, rng).to_owned());
    }
    match argument {
        "token" => Value::Text(pick(TOKENS, rng).to_owned()),
        // Any text is a prefix, and most that make sense are the beginning of a name.
        "prefix" | "after" => {
            let name = name(rng);
            let end = rng.random_range(0..=name.len());
            let end = (0..=end).rev().find(|&at| name.is_char_boundary(at));
            Value::Text(name[..end.unwrap_or(0)].to_owned())
        }
        _ => Value::Text(name(rng)),
    }
}

/// A name; hardly ever one that is not allowed.
fn name(rng: &mut StdRng) -> String {
    match rng.random_range(0..40) {
        0 => pick(WILD, rng).to_owned(),
        1 => "x".repeat(256),
        2 => "\u{e9}".repeat(128),
        3 => "x".repeat(255),
        4 => "\u{e9}".repeat(127),
        _ => pick(NAMES, rng).to_owned(),
    }
}

/// At the limit, just beyond it, or far beyond it.
fn long(rng: &mut StdRng) -> Value {
    match rng.random_range(0..8) {
        0 => Value::Repeated("x", 3_000_000),
        1 => Value::Repeated("\u{1f44d}", 500_000),
        2 => Value::Repeated("x", 256),
        3 => Value::Repeated("\u{e9}", 128),
        4 => Value::Repeated("%", 65_536),
        5 => Value::Repeated("\u{1f44d}", 63),
        6 => Value::Refused("convert_from('\\xff'::bytea, 'UTF8')".to_owned()),
        _ => Value::Refused("U&'\\d800'".to_owned()),
    }
}

fn bigint(rng: &mut StdRng) -> Value {
    if rng.random_ratio(1, 15) {
        return refused(NO_BIGINTS, rng);
    }
    Value::Number(NUMBERS.choose(rng).copied().unwrap_or_default())
}

fn integer(rng: &mut StdRng) -> Value {
    match rng.random_range(0..12) {
        0 => Value::Refused("2147483648".to_owned()),
        1 => Value::Refused("'x'::integer".to_owned()),
        2 => Value::Number(-1),
        3 => Value::Number(i32::MAX.into()),
        4 => Value::Number(i32::MIN.into()),
        _ => Value::Number(rng.random_range(0..12)),
    }
}

fn dimensions<T>(elements: Vec<Option<T>>, rng: &mut StdRng) -> Array<T> {
    Array {
        elements,
        dimensions: if rng.random_ratio(1, 12) {
            rng.random_range(2..=6)
        } else {
            1
        },
        lower: [1, 1, 1, 0, -7, i32::MAX - 10_000]
            .choose(rng)
            .copied()
            .unwrap_or(1),
    }
}

/// Mostly of two elements, so that arrays of names and deltas often have one length.
fn length(rng: &mut StdRng) -> usize {
    match rng.random_range(0..20) {
        0 => 0,
        1 => rng.random_range(3..9),
        2 => 5_000,
        _ => 2,
    }
}

fn names(rng: &mut StdRng) -> Value {
    if rng.random_ratio(1, 15) {
        return Value::Refused(pick(NO_ARRAYS, rng).replace("{}", "text[]"));
    }
    let elements = (0..length(rng))
        .map(|_| (!rng.random_ratio(1, 60)).then(|| name(rng)))
        .collect();
    Value::Names(dimensions(elements, rng))
}

fn numbers(rng: &mut StdRng) -> Value {
    if rng.random_ratio(1, 15) {
        return Value::Refused(
            pick(NO_ARRAYS, rng)
                .replace("{}", "bigint[]")
                .replace("'x'", "'{x}'"),
        );
    }
    let elements = (0..length(rng))
        .map(|_| (!rng.random_ratio(1, 60)).then(|| NUMBERS.choose(rng).copied().unwrap_or(1)))
        .collect();
    Value::Numbers(dimensions(elements, rng))
}

fn json(rng: &mut StdRng) -> Value {
    match rng.random_range(0..10) {
        0 => refused(NO_JSON, rng),
        1..=3 => Value::Other(pick(ODD_JSON, rng).to_owned()),
        _ => {
            let members = (0..rng.random_range(0..5)).map(|_| (name(rng), member(rng)));
            Value::Object(members.collect())
        }
    }
}

fn member(rng: &mut StdRng) -> Member {
    let whole = |json: &str, value| (json.to_owned(), Delta::Whole(value));
    let (json, delta) = match rng.random_range(0..30) {
        0 => whole("1.0", 1),
        1 => whole("1e3", 1000),
        2 => whole("-0", 0),
        3 => whole("-0.0", 0),
        4 => whole("12300e-2", 123),
        5 => whole("9.223372036854775807e18", i64::MAX),
        6 => ("9223372036854775808".to_owned(), Delta::TooLarge),
        7 => ("1e19".to_owned(), Delta::TooLarge),
        8 => ("-1e40".to_owned(), Delta::TooLarge),
        9 => ("1e400".to_owned(), Delta::TooLarge),
        10 => ("0.5".to_owned(), Delta::NotWhole),
        11 => ("1e-400".to_owned(), Delta::NotWhole),
        12 => ("9223372036854775806.5".to_owned(), Delta::NotWhole),
        13 => ("\"1\"".to_owned(), Delta::NotWhole),
        14 => ("null".to_owned(), Delta::NotWhole),
        15 => ("true".to_owned(), Delta::NotWhole),
        16 => ("[1]".to_owned(), Delta::NotWhole),
        17 => ("{\"a\": 1}".to_owned(), Delta::NotWhole),
        _ => {
            let value = NUMBERS.choose(rng).copied().unwrap_or_default();
            (value.to_string(), Delta::Whole(value))
        }
    };
    Member { json, delta }
}

impl Value {
    /// The value in SQL, of this type beyond doubt.
    pub(super) fn sql(&self, type_name: &str) -> String {
        match self {
            Self::Null => format!("NULL::{type_name}"),
            Self::Text(text) => format!("{}::{type_name}", quote(text)),
            Self::Repeated(text, times) => format!("repeat({}, {times})", quote(text)),
            // The least number is no literal, as its sign is an operator.
            Self::Number(number) => format!("'{number}'::{type_name}"),
            Self::Names(array) => array.sql(type_name, |text| {
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{escaped}\"")
            }),
            Self::Numbers(array) => array.sql(type_name, ToString::to_string),
            Self::Object(members) => {
                let mut json = String::from("{");
                for (index, (key, member)) in members.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    // serde_json's strings are JSON's, with what must be escaped escaped.
                    let key = serde_json::Value::from(key.as_str());
                    let _ = write!(json, "{comma}{key}: {}", member.json);
                }
                json.push('}');
                format!("{}::jsonb", quote(&json))
            }
            Self::Refused(sql) | Self::Other(sql) => format!("({sql})::{type_name}"),
        }
    }

    /// The text, when it is one.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Repeated(text, times) => Some(text.repeat(*times)),
            _ => None,
        }
    }
}

impl<T> Array<T> {
    fn sql(&self, type_name: &str, element: impl Fn(&T) -> String) -> String {
        let elements: Vec<String> = self
            .elements
            .iter()
            .map(|value| value.as_ref().map_or_else(|| "NULL".to_owned(), &element))
            .collect();
        if elements.is_empty() {
            return format!("'{{}}'::{type_name}");
        }
        let bounds = format!(
            "{}[{}:{}]=",
            "[1:1]".repeat(self.dimensions - 1),
            self.lower,
            i64::from(self.lower) + elements.len() as i64 - 1
        );
        let (open, close) = ("{".repeat(self.dimensions), "}".repeat(self.dimensions));
        let array = format!("{bounds}{open}{}{close}", elements.join(","));
        format!("{}::{type_name}", quote(&array))
    }
}

/// A string constant, whatever `standard_conforming_strings` is.
pub(super) fn quote(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
