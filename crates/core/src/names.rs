//! Ranges of names, in the order of their bytes.

use crate::lane::MAX_NAME_BYTES;

/// A half-open interval of names.
///
/// Its ends can be any texts, of which only so much is kept as makes a difference to a name: one byte more
/// than the longest has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRange {
    from: Option<Vec<u8>>,
    before: Option<Vec<u8>>,
}

impl NameRange {
    /// All names.
    pub fn all() -> Self {
        Self::default()
    }

    /// Keeps the names that are equal to `name`.
    pub fn equal_to(&mut self, name: &[u8]) {
        self.at_least(name);
        self.at_most(name);
    }

    /// Keeps the names that are `name` or greater.
    pub fn at_least(&mut self, name: &[u8]) {
        if self.from.as_deref().is_none_or(|from| from < name) {
            self.from = Some(clipped(name).to_vec());
        }
    }

    /// Keeps the names that are greater than `name`.
    pub fn more_than(&mut self, name: &[u8]) {
        self.at_least(&successor(name));
    }

    /// Keeps the names that are less than `name`.
    pub fn less_than(&mut self, name: &[u8]) {
        if self.before.as_deref().is_none_or(|before| name < before) {
            self.before = Some(clipped(name).to_vec());
        }
    }

    /// Keeps the names that are `name` or less.
    pub fn at_most(&mut self, name: &[u8]) {
        self.less_than(&successor(name));
    }

    /// Keeps the names that begin with `prefix`.
    pub fn starting_with(&mut self, prefix: &[u8]) {
        let prefix = clipped(prefix);
        self.at_least(prefix);
        // The least string above all that have the prefix: the last byte that can grow does.
        let end = prefix.iter().rposition(|&byte| byte < u8::MAX);
        if let Some(end) = end {
            let mut above = prefix[..=end].to_vec();
            above[end] += 1;
            self.less_than(&above);
        }
    }

    /// The lower end, included.
    pub fn from(&self) -> Option<&[u8]> {
        self.from.as_deref()
    }

    /// The upper end, left out.
    pub fn before(&self) -> Option<&[u8]> {
        self.before.as_deref()
    }

    /// Is there no name in it, whatever names there are?
    pub fn is_empty(&self) -> bool {
        self.is_past(self.from().unwrap_or_default())
    }

    /// Is the name in the range?
    pub fn contains(&self, name: &[u8]) -> bool {
        self.from.as_deref().is_none_or(|from| from <= name) && !self.is_past(name)
    }

    /// Is the name beyond the upper end, and so all that follow it?
    pub fn is_past(&self, name: &[u8]) -> bool {
        self.before.as_deref().is_some_and(|before| name >= before)
    }

    /// The name, when the range holds no other.
    pub fn only_name(&self) -> Option<&[u8]> {
        let (from, before) = (self.from.as_deref()?, self.before.as_deref()?);
        (before == successor(from)).then_some(from)
    }

    /// Are all names in the range?
    pub fn is_all(&self) -> bool {
        self.from.is_none() && self.before.is_none()
    }
}

/// The least string that is greater. (A zero byte cannot be part of a name: nothing lies between.)
fn successor(name: &[u8]) -> Vec<u8> {
    [clipped(name), &[0]].concat()
}

/// Compares with any name as the whole does.
fn clipped(text: &[u8]) -> &[u8] {
    &text[..text.len().min(MAX_NAME_BYTES + 1)]
}

/// The text that every match of a LIKE pattern begins with, and whether the pattern is that text.
pub fn like_prefix(pattern: &[u8]) -> (Vec<u8>, bool) {
    let mut prefix = Vec::new();
    let mut bytes = pattern.iter();
    while let Some(&byte) = bytes.next() {
        if prefix.len() > MAX_NAME_BYTES {
            // No name has such a beginning.
            return (prefix, false);
        }
        match byte {
            b'%' | b'_' => return (prefix, false),
            b'\\' => match bytes.next() {
                Some(&escaped) => prefix.push(escaped),
                None => return (prefix, false),
            },
            _ => prefix.push(byte),
        }
    }
    (prefix, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn short() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![Just(1u8), Just(b'a'), Just(b'b'), Just(255u8)],
            0..4,
        )
    }

    /// About as long as the longest name, and alike up to the last bytes.
    fn long() -> impl Strategy<Value = Vec<u8>> {
        (MAX_NAME_BYTES - 2..MAX_NAME_BYTES + 4, short()).prop_map(|(length, end)| {
            let mut text = vec![b'a'; length];
            text[length - end.len()..].copy_from_slice(&end);
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]
        #[test]
        fn texts_that_are_too_long_for_a_name_are_compared_right(a in long(), name in long()) {
            let name = &name[..name.len().min(MAX_NAME_BYTES)];
            let with = |set: &dyn Fn(&mut NameRange)| {
                let mut range = NameRange::all();
                set(&mut range);
                range.contains(name)
            };
            prop_assert_eq!(with(&|r| r.equal_to(&a)), name == a);
            prop_assert_eq!(with(&|r| r.at_least(&a)), name >= &a[..]);
            prop_assert_eq!(with(&|r| r.more_than(&a)), name > &a[..]);
            prop_assert_eq!(with(&|r| r.less_than(&a)), name < &a[..]);
            prop_assert_eq!(with(&|r| r.at_most(&a)), name <= &a[..]);
            prop_assert_eq!(with(&|r| r.starting_with(&a)), name.starts_with(&a));
            let like = like_prefix(&a).0;
            prop_assert_eq!(with(&|r| r.starting_with(&like)), name.starts_with(&a));
        }

        #[test]
        fn every_condition_means_what_it_says(a in short(), b in short(), name in short()) {
            let with = |set: &dyn Fn(&mut NameRange)| {
                let mut range = NameRange::all();
                set(&mut range);
                range.contains(&name)
            };
            prop_assert_eq!(with(&|r| r.equal_to(&a)), name == a);
            prop_assert_eq!(with(&|r| r.at_least(&a)), name >= a);
            prop_assert_eq!(with(&|r| r.more_than(&a)), name > a);
            prop_assert_eq!(with(&|r| r.less_than(&a)), name < a);
            prop_assert_eq!(with(&|r| r.at_most(&a)), name <= a);
            prop_assert_eq!(with(&|r| r.starting_with(&a)), name.starts_with(&a));
            prop_assert_eq!(with(&|r| { r.at_least(&a); r.less_than(&b); }), name >= a && name < b);
            prop_assert_eq!(with(&|r| { r.at_least(&a); r.at_least(&b); }), name >= a && name >= b);
        }

        #[test]
        fn only_equality_has_one_name(a in short(), b in short()) {
            let mut range = NameRange::all();
            range.equal_to(&a);
            prop_assert_eq!(range.only_name(), Some(&a[..]));
            let mut range = NameRange::all();
            range.starting_with(&b);
            prop_assert_eq!(range.only_name(), None);
        }
    }

    #[test]
    fn like_patterns() {
        assert_eq!(like_prefix(b"tasks:%"), (b"tasks:".to_vec(), false));
        assert_eq!(like_prefix(b"a\\%b_c"), (b"a%b".to_vec(), false));
        assert_eq!(like_prefix(b"plain"), (b"plain".to_vec(), true));
        assert_eq!(like_prefix(b"%"), (Vec::new(), false));
        assert_eq!(like_prefix(b"end\\"), (b"end".to_vec(), false));
    }
}
