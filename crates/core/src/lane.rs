//! Lanes: independent slices of the counters.
//!
//! A counter's lane is a function of its name alone, and it is stored: a delta lies in its lane's
//! log, so the hash must mean the same on every platform and in every later version. XXH3 (Yann
//! Collet, 64 bits, seed 0) is specified to that degree; the server's own hash functions are not.

/// How many lanes there are. The tables of `sql/` are made for this number.
pub const LANES: usize = 8;

/// The longest name of a counter, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// A counter's name, hashed once: for its lane, its place in the pending map and its anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameHash(u64);

impl NameHash {
    /// Hashes a name's bytes in the database's encoding.
    pub fn of(name: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(name))
    }

    /// The raw hash.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The lane of this name, `0..LANES`.
    pub fn lane(self) -> usize {
        (self.0 % LANES as u64) as usize
    }

    /// A stand-in for a page's number.
    ///
    /// Serializable transactions meet on it in the anchor relation. It uses other bits than the
    /// lane does; two names that share a page cost a needless retry, never a missed conflict.
    pub fn anchor_page(self) -> u32 {
        (self.0 >> 32) as u32 & 0x7fff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deltas on disk are found by these numbers: a change here loses counters.
    #[test]
    fn lanes_never_change() {
        let lanes: Vec<usize> = [
            "",
            "a",
            "abc",
            "flights",
            "flights:origin:EWR",
            "likes:post:1",
        ]
        .iter()
        .map(|name| NameHash::of(name.as_bytes()).lane())
        .collect();
        assert_eq!(lanes, STORED_LANES);
        assert_eq!(NameHash::of(b"abc").get(), 0x78af_5f94_892f_3950);
    }

    const STORED_LANES: [usize; 6] = [2, 7, 0, 1, 1, 7];

    #[test]
    fn names_spread_over_all_lanes() {
        let mut seen = [0usize; LANES];
        for i in 0..8000 {
            seen[NameHash::of(format!("likes:{i}").as_bytes()).lane()] += 1;
        }
        for count in seen {
            assert!((800..1200).contains(&count), "{seen:?}");
        }
    }
}
