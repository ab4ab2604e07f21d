//! Sums of what is pending, by name.

use crate::lane::NameHash;
use crate::room::{self, NoMemory};
use crate::tally::Tally;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

type ByHash = BuildHasherDefault<NameHasher>;

/// Hashes a name by [`NameHash`]: whoever visits a million totals looks each of them up here, and
/// the hasher of the standard library takes several times as long.
#[derive(Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = NameHash::of(bytes).get();
    }
    /// The length, which says nothing new.
    fn write_usize(&mut self, _length: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Sums by name.
#[derive(Debug, Default)]
pub struct Sums(HashMap<Box<[u8]>, Tally, ByHash>);

impl Sums {
    /// Adds to one of them.
    ///
    /// # Errors
    /// [`NoMemory`]; then nothing has changed.
    pub fn add(&mut self, name: &[u8], tally: Tally) -> Result<(), NoMemory> {
        match self.0.get_mut(name) {
            Some(sum) => *sum += tally,
            None => {
                room::keep_spare()?;
                self.0.try_reserve(1)?;
                self.0.insert(name.into(), tally);
            }
        }
        Ok(())
    }

    /// One of them; nothing for an unknown name.
    pub fn get(&self, name: &[u8]) -> Tally {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Is there one of this name?
    pub fn contains(&self, name: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains_key(name)
    }

    /// Takes one out; nothing for an unknown name.
    pub fn take(&mut self, name: &[u8]) -> Tally {
        if self.0.is_empty() {
            return Tally::default();
        }
        self.0.remove(name).unwrap_or_default()
    }

    /// All, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Tally)> {
        self.0.iter().map(|(name, &tally)| (&**name, tally))
    }

    /// To be taken one by one, which leaves the sums as they are.
    pub fn to_take(&self) -> ToTake<'_> {
        ToTake {
            sums: self,
            taken: HashSet::default(),
        }
    }
}

impl IntoIterator for Sums {
    type Item = (Box<[u8]>, Tally);
    type IntoIter = std::collections::hash_map::IntoIter<Box<[u8]>, Tally>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// See [`Sums::to_take`].
pub struct ToTake<'a> {
    sums: &'a Sums,
    taken: HashSet<&'a [u8], ByHash>,
}

impl<'a> ToTake<'a> {
    /// The sum of a name that is asked for the first time, if there is one.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn take(&mut self, name: &[u8]) -> Result<Option<Tally>, NoMemory> {
        let Some((name, &tally)) = self.sums.0.get_key_value(name) else {
            return Ok(None);
        };
        room::keep_spare()?;
        self.taken.try_reserve(1)?;
        self.taken.insert(name);
        Ok(Some(tally))
    }

    /// What was not taken.
    pub fn rest(&self) -> impl Iterator<Item = (&'a [u8], Tally)> {
        let left = |(name, _): &(&'a [u8], Tally)| !self.taken.contains(name);
        self.sums.iter().filter(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_added_up_and_taken_once() {
        let mut sums = Sums::default();
        sums.add(b"a", Tally::of(1, 1)).unwrap();
        sums.add(b"b", Tally::of(5, 1)).unwrap();
        sums.add(b"a", Tally::of(2, 1)).unwrap();
        assert_eq!(sums.get(b"a"), Tally::of(3, 2));
        assert_eq!(sums.get(b"c"), Tally::default());

        let mut to_take = sums.to_take();
        assert_eq!(to_take.take(b"c"), Ok(None));
        assert_eq!(to_take.take(b"b"), Ok(Some(Tally::of(5, 1))));
        let rest: Vec<_> = to_take.rest().collect();
        assert_eq!(rest, [(&b"a"[..], Tally::of(3, 2))]);

        assert_eq!(sums.take(b"b"), Tally::of(5, 1));
        assert_eq!(sums.take(b"b"), Tally::default());
        assert_eq!(sums.into_iter().count(), 1);
    }
}
