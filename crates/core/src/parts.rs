//! Names of counters that are made of parts: `type:part:part`.
//!
//! # How it works
//! Parts stand behind the type, each after a colon. In a part `%` is written `%25` and `:` is written `%3A`, a
//! NULL is `%NULL`, and an empty text is nothing. No escape makes `%N`, and no part has a colon in it, so
//! different parts make different names, and a name that begins with the name of some parts and a colon is one
//! that begins with these parts.
//!
//! A name that would be longer than a counter's may be is cut: as many whole parts are kept as leave room for
//! one more, `%~` and the first 128 bits of SHA-256 of the whole uncut name in hexadecimal. No escape makes `%~`
//! either. SHA-256 since such names come from whoever writes to a table, and nobody shall find two that
//! become one.
//!
//! # Invariants
//! - A character is never split: what is cut is cut before a colon, and no encoding that a database can have
//!   uses the bytes of ASCII within other characters.
//! - Names are stored. What parts make today they make for ever.

use crate::lane::MAX_NAME_BYTES;
use crate::windows::MAX_WINDOWED_BYTES;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// How a part that is NULL is written.
const NULL: &[u8] = b"%NULL";
/// What the part begins with that stands for all that was cut off.
const REST: &[u8] = b"%~";
/// So much of the hash is in it.
const HASH_BYTES: usize = 16;

/// The longest name that parts make, in bytes: counters of any type can have it, of those with windows as well.
pub const MAX_MADE_BYTES: usize = MAX_WINDOWED_BYTES;

/// The longest beginning of a name that is kept, in bytes, when the rest of it is cut off. Whoever looks for
/// counters by their first parts finds all of them, cut names too, as long as these are no longer than that,
/// type included and without the colon behind them.
pub const MAX_KEPT_BYTES: usize = MAX_MADE_BYTES - 1 - REST.len() - 2 * HASH_BYTES;

/// May a counter type have this name? It is what stands before the colon in the names of its counters: ASCII
/// that can be seen, and no colon.
pub fn is_type_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b':';
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.iter().all(plain)
}

/// The name of a type whose counters' names can be made of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeName<'a>(&'a [u8]);

impl<'a> TypeName<'a> {
    /// None when it is the name of no type, or is longer than [`MAX_KEPT_BYTES`]: of a name that is cut the
    /// type must be left.
    pub fn new(name: &'a [u8]) -> Option<Self> {
        (name.len() <= MAX_KEPT_BYTES && is_type_name(name)).then_some(Self(name))
    }

    /// Its bytes.
    pub fn get(self) -> &'a [u8] {
        self.0
    }
}

/// Makes one name after the other. It allocates nothing, and fails never, however long the parts are.
pub struct NameBuilder {
    bytes: [u8; MAX_MADE_BYTES],
    length: usize,
    /// That of the type's name, which the bytes begin with.
    type_length: usize,
    /// The length of the longest beginning that can be kept: whole parts, and room for the rest.
    kept: usize,
    /// All of a name that has become too long.
    cut: Option<Sha256>,
}

impl Default for NameBuilder {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_MADE_BYTES],
            length: 0,
            type_length: 0,
            kept: 0,
            cut: None,
        }
    }
}

impl NameBuilder {
    /// Begins a name, and forgets the one before.
    pub fn begin(&mut self, type_name: TypeName) {
        let name = type_name.get();
        self.bytes[..name.len()].copy_from_slice(name);
        self.type_length = name.len();
        self.begin_again();
    }

    /// Begins another name of the same type. There was one.
    #[inline]
    pub fn begin_again(&mut self) {
        self.cut = None;
        self.length = self.type_length;
        self.kept = self.type_length;
    }

    /// A part that is NULL.
    pub fn null(&mut self) {
        self.plain(NULL);
    }

    /// A part of which the caller knows that it has neither a `%` nor a colon: digits, say.
    #[inline]
    pub fn plain(&mut self, part: &[u8]) {
        self.colon();
        self.push(part);
    }

    /// Any part, of any length.
    #[inline]
    pub fn text(&mut self, part: &[u8]) {
        self.colon();
        let mut rest = part;
        while let Some(at) = rest.iter().position(|&byte| escape(byte).is_some()) {
            self.push(&rest[..at]);
            self.push(escape(rest[at]).unwrap_or_default());
            rest = &rest[at + 1..];
        }
        self.push(rest);
    }

    /// The whole name, 1 to [`MAX_MADE_BYTES`] long. Without any part it is that of one empty part: the type
    /// and a colon.
    pub fn finish(&mut self) -> &[u8] {
        // A colon would stand between the two.
        if self.kept == self.length {
            self.colon();
        }
        if let Some(hash) = self.cut.take() {
            self.length = self.kept;
            self.push(b":");
            self.push(REST);
            for byte in &hash.finalize()[..HASH_BYTES] {
                self.push(&hexadecimal(*byte));
            }
        }
        &self.bytes[..self.length]
    }

    #[inline]
    fn colon(&mut self) {
        if self.cut.is_none() && self.length <= MAX_KEPT_BYTES {
            self.kept = self.length;
        }
        self.push(b":");
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if end <= MAX_MADE_BYTES && self.cut.is_none() {
            self.bytes[self.length..end].copy_from_slice(bytes);
            self.length = end;
        } else {
            self.push_cut(bytes);
        }
    }

    #[cold]
    fn push_cut(&mut self, bytes: &[u8]) {
        let all =
            (self.cut).get_or_insert_with(|| Sha256::new_with_prefix(&self.bytes[..self.length]));
        all.update(bytes);
    }
}

#[inline]
fn escape(byte: u8) -> Option<&'static [u8]> {
    match byte {
        b'%' => Some(b"%25"),
        b':' => Some(b"%3A"),
        _ => None,
    }
}

fn hexadecimal(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]
}

/// A part of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// NULL.
    Null,
    /// A text, as it was before it was escaped.
    Text(Cow<'a, [u8]>),
    /// What stands for all parts from here on, whatever they were. The last one.
    Rest(&'a [u8]),
}

/// The type and the parts of a name. None for a name that no parts make.
pub fn split(name: &[u8]) -> Option<(TypeName<'_>, Vec<Part<'_>>)> {
    if name.len() > MAX_MADE_BYTES {
        return None;
    }
    let mut pieces = name.split(|&byte| byte == b':');
    let type_name = TypeName::new(pieces.next()?)?;
    let mut parts = Vec::new();
    while let Some(piece) = pieces.next() {
        // The name is the last piece when nothing follows it.
        let is_last = pieces.clone().next().is_none();
        parts.push(match piece {
            NULL => Part::Null,
            rest if is_last && is_rest(rest) => Part::Rest(rest),
            text => Part::Text(unescaped(text)?),
        });
    }
    (!parts.is_empty()).then_some((type_name, parts))
}

fn is_rest(piece: &[u8]) -> bool {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    piece
        .strip_prefix(REST)
        .is_some_and(|hash| hash.len() == 2 * HASH_BYTES && hash.iter().all(digit))
}

fn unescaped(piece: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !piece.contains(&b'%') {
        return Some(Cow::Borrowed(piece));
    }
    let mut plain = Vec::with_capacity(piece.len());
    let mut rest = piece;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        plain.extend_from_slice(&rest[..at]);
        let byte = match rest.get(at + 1..at + 3)? {
            b"25" => b'%',
            b"3A" => b':',
            _ => return None,
        };
        plain.push(byte);
        rest = &rest[at + 3..];
    }
    plain.extend_from_slice(rest);
    Some(Cow::Owned(plain))
}

/// The type that a name belongs to: what is before its first colon.
#[inline]
pub fn type_of(name: &[u8]) -> Option<&[u8]> {
    let colon = name.iter().position(|&byte| byte == b':')?;
    Some(&name[..colon])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Parts as whoever makes a name has them.
    type Parts = Vec<Option<Vec<u8>>>;

    fn build(type_name: &[u8], parts: &Parts) -> Vec<u8> {
        let mut builder = NameBuilder::default();
        rebuild(&mut builder, type_name, parts)
    }

    fn rebuild(builder: &mut NameBuilder, type_name: &[u8], parts: &Parts) -> Vec<u8> {
        builder.begin(TypeName::new(type_name).expect("it is the name of a type"));
        finish(builder, parts)
    }

    fn finish(builder: &mut NameBuilder, parts: &Parts) -> Vec<u8> {
        for part in parts {
            match part {
                Some(part) => builder.text(part),
                None => builder.null(),
            }
        }
        builder.finish().to_vec()
    }

    /// The name before it is cut, by the rules as they are told.
    fn uncut(type_name: &[u8], parts: &Parts) -> Vec<u8> {
        let mut name = type_name.to_vec();
        for part in parts {
            name.push(b':');
            match part {
                None => name.extend_from_slice(b"%NULL"),
                Some(part) => {
                    for &byte in part {
                        match byte {
                            b'%' => name.extend_from_slice(b"%25"),
                            b':' => name.extend_from_slice(b"%3A"),
                            _ => name.push(byte),
                        }
                    }
                }
            }
        }
        name
    }

    /// The parts as they were, and the hash if there is one.
    fn read(name: &[u8]) -> (Parts, Option<Vec<u8>>) {
        let (_, parts) = split(name).expect("it is made of parts");
        let mut rest = None;
        let mut read = Parts::new();
        for part in parts {
            assert!(rest.is_none(), "something follows the hash");
            match part {
                Part::Null => read.push(None),
                Part::Text(text) => read.push(Some(text.into_owned())),
                Part::Rest(hash) => rest = Some(hash.to_vec()),
            }
        }
        (read, rest)
    }

    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![
            4 => proptest::sample::select(&b"%:~%25%3A%NULLab0\x01\x80\xff"[..]),
            1 => 1u8..,
        ]
    }

    fn part(longest: usize) -> impl Strategy<Value = Option<Vec<u8>>> {
        prop_oneof![
            1 => Just(None),
            1 => Just(Some(b"NULL".to_vec())),
            1 => Just(Some(b"%NULL".to_vec())),
            1 => Just(Some(b"%~0123456789abcdef0123456789abcdef".to_vec())),
            6 => proptest::collection::vec(byte(), 0..longest).prop_map(Some),
        ]
    }

    fn parts(longest: usize) -> impl Strategy<Value = Parts> {
        proptest::collection::vec(part(longest), 1..6)
    }

    fn type_name() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => Just(b"t".to_vec()),
            2 => Just(b"%~tasks@1".to_vec()),
            1 => (MAX_KEPT_BYTES - 2..=MAX_KEPT_BYTES).prop_map(|length| vec![b'x'; length]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, max_global_rejects: 100_000, ..ProptestConfig::default() })]

        #[test]
        fn short_names_have_the_parts_that_they_were_made_of(
            type_name in type_name(), all in parts(12),
        ) {
            let whole = uncut(&type_name, &all);
            prop_assume!(whole.len() <= MAX_MADE_BYTES);
            let name = build(&type_name, &all);
            prop_assert_eq!(&name, &whole);
            prop_assert_eq!(split(&name).map(|(found, _)| found.get()), Some(&type_name[..]));
            prop_assert_eq!(read(&name), (all, None));
        }

        #[test]
        fn long_names_keep_as_many_whole_parts_as_fit(type_name in type_name(), all in parts(150)) {
            let whole = uncut(&type_name, &all);
            prop_assume!(whole.len() > MAX_MADE_BYTES);
            let name = build(&type_name, &all);
            prop_assert!(name.len() <= MAX_MADE_BYTES);
            let kept = (0..all.len())
                .rev()
                .find(|&kept| uncut(&type_name, &all[..kept].to_vec()).len() <= MAX_KEPT_BYTES)
                .expect("the type fits");
            let (found, rest) = read(&name);
            prop_assert_eq!(&found[..], &all[..kept]);
            let hash: String = Sha256::digest(&whole)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(rest, Some(format!("%~{hash}").into_bytes()));
            prop_assert!(name.starts_with(&uncut(&type_name, &all[..kept].to_vec())));
        }

        #[test]
        fn other_parts_make_another_name(
            one in parts(4), other in parts(4), long in part(300),
        ) {
            let name = |parts: &Parts| build(b"t", parts);
            prop_assert_eq!(one == other, name(&one) == name(&other));
            // As well where both are cut.
            let longer = |parts: &Parts| [&parts[..], std::slice::from_ref(&long)].concat();
            prop_assert_eq!(one == other, name(&longer(&one)) == name(&longer(&other)));
            prop_assert_ne!(name(&one), name(&longer(&one)));
        }

        #[test]
        fn names_begin_with_the_name_of_their_first_parts(
            all in parts(80), first in 1usize..6,
        ) {
            prop_assume!(first < all.len());
            let first = all[..first].to_vec();
            prop_assume!(uncut(b"t", &first).len() <= MAX_KEPT_BYTES);
            let prefix = [&build(b"t", &first)[..], b":"].concat();
            prop_assert!(build(b"t", &all).starts_with(&prefix));
        }

        #[test]
        fn texts_stay_texts(all in proptest::collection::vec("[%:aé\u{1f44d}]{0,60}", 1..5)) {
            let all = all.into_iter().map(|part| Some(part.into_bytes())).collect();
            let name = build(b"t", &all);
            prop_assert!(std::str::from_utf8(&name).is_ok());
        }

        #[test]
        fn what_is_split_is_what_parts_make(name in proptest::collection::vec(byte(), 0..12)) {
            let name = [b"t:", &name[..]].concat();
            if let Some((type_name, _)) = split(&name) {
                let (parts, rest) = read(&name);
                prop_assert!(rest.is_none(), "it is too short for a hash");
                prop_assert_eq!(build(type_name.get(), &parts), name);
            }
        }

        #[test]
        fn a_builder_forgets_the_name_before(before in parts(200), all in parts(40)) {
            let mut builder = NameBuilder::default();
            rebuild(&mut builder, b"another-type", &before);
            prop_assert_eq!(rebuild(&mut builder, b"t", &all), build(b"t", &all));
            rebuild(&mut builder, b"type", &before);
            builder.begin_again();
            prop_assert_eq!(finish(&mut builder, &all), build(b"type", &all));
        }
    }

    fn texts(parts: &[&str]) -> Parts {
        let texts = parts.iter();
        texts.map(|part| Some(part.as_bytes().to_vec())).collect()
    }

    /// Counters on disk have these names: a change here loses them.
    #[test]
    fn names_never_change() {
        assert_eq!(build(b"tasks", &texts(&["42", "open"])), b"tasks:42:open");
        assert_eq!(
            build(b"t", &texts(&["100%", "a:b", ""])),
            b"t:100%25:a%3Ab:"
        );
        assert_eq!(
            build(b"t", &vec![None, Some(b"NULL".to_vec())]),
            b"t:%NULL:NULL"
        );
        // printf '%s' "tasks:42:$(printf 'x%.0s' $(seq 300))" | sha256sum
        assert_eq!(
            build(b"tasks", &texts(&["42", &"x".repeat(300)])),
            b"tasks:42:%~b18aa82f099b1a070c7d22193c018707"
        );
    }

    #[test]
    fn a_name_without_parts_is_that_of_an_empty_one() {
        assert_eq!(build(b"tasks@0", &Parts::new()), b"tasks@0:");
        assert_eq!(build(b"tasks@0", &texts(&[""])), b"tasks@0:");
        let long = vec![b'x'; MAX_KEPT_BYTES];
        assert_eq!(build(&long, &Parts::new()), [&long[..], b":"].concat());
    }

    #[test]
    fn names_are_cut_from_the_first_byte_too_many_on() {
        let fits = build(b"t", &texts(&["a", &"x".repeat(MAX_MADE_BYTES - 4)]));
        assert_eq!(fits.len(), MAX_MADE_BYTES);
        assert!(fits.ends_with(b"xxx"));
        let cut = build(b"t", &texts(&["a", &"x".repeat(MAX_MADE_BYTES - 3)]));
        assert!(cut.starts_with(b"t:a:%~"), "{cut:?}");
        // The part that just fits beside the hash, and the one that does not.
        let beside = |bytes| build(b"t", &texts(&[&"y".repeat(bytes), &"x".repeat(300)]));
        let longest = beside(MAX_KEPT_BYTES - 2);
        assert_eq!(longest.len(), MAX_MADE_BYTES);
        assert!(longest.starts_with(b"t:yyy"));
        assert!(beside(MAX_KEPT_BYTES - 1).starts_with(b"t:%~"));
        // An escape that would be split.
        for bytes in MAX_MADE_BYTES - 8..MAX_MADE_BYTES {
            let name = build(b"t", &texts(&[&("x".repeat(bytes) + ":%")]));
            assert!(split(&name).is_some());
            assert!(name.ends_with(b"x%3A%25") || name.starts_with(b"t:%~"));
        }
    }

    #[test]
    fn what_no_parts_make_is_not_split() {
        for name in [
            "",
            "tasks",
            ":a",
            "t t:a",
            "\u{e9}:a",
            "t:%",
            "t:%2",
            "t:%3a",
            "t:%41",
            "t:%null",
            "t:a%NULL",
            "t:%~",
            "t:%~0123456789abcdef0123456789abcde",
            "t:%~0123456789abcdef0123456789abcdef:a",
            "t:%~0123456789ABCDEF0123456789ABCDEF",
            "t:a%~0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(split(name.as_bytes()), None, "{name}");
        }
        let long = [&vec![b'x'; MAX_KEPT_BYTES + 1][..], b":a"].concat();
        assert_eq!(split(&long), None);
        let long = [b"t:", &vec![b'x'; MAX_MADE_BYTES - 1][..]].concat();
        assert_eq!(split(&long), None);
    }

    #[test]
    fn names_of_types() {
        for name in ["t", "tasks@0", "%", "a-b/c"] {
            assert!(is_type_name(name.as_bytes()), "{name}");
        }
        for name in ["", "a:b", "a b", "\u{e9}", "a\n", "\u{7f}"] {
            assert!(!is_type_name(name.as_bytes()), "{name}");
        }
        assert!(is_type_name(&[b'x'; MAX_NAME_BYTES]));
        assert!(!is_type_name(&[b'x'; MAX_NAME_BYTES + 1]));
        assert!(TypeName::new(&[b'x'; MAX_KEPT_BYTES]).is_some());
        assert!(TypeName::new(&[b'x'; MAX_KEPT_BYTES + 1]).is_none());
    }
}
