//! Which imports are allowed.

use crate::Tree;
use crate::imports::{imports, module_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A folder, or a file at the root, and the floor that it is on.
#[derive(Clone, Copy, Debug)]
pub struct Floor<'a> {
    /// As in `a::b::c`, the `a`.
    pub place: &'a str,
    /// The higher one may import the lower one.
    pub height: u8,
}

/// An import that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The file, below the root.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// Imports from one file to others, with the first line of each.
type Graph = BTreeMap<String, BTreeMap<String, usize>>;

/// All imports of a tree that are not allowed.
#[must_use]
pub fn check(tree: &Tree, floors: &[Floor]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut graph = Graph::new();
    for (file, text) in tree {
        let mut complain = |line, rule| {
            violations.push(Violation {
                file: file.clone(),
                line,
                rule,
            });
        };
        let Some(own) = floor_of(file, floors) else {
            complain(1, "it is on no floor".to_owned());
            continue;
        };
        let imports = match imports(file, text) {
            Ok(imports) => imports,
            Err(error) => {
                complain(1, error);
                continue;
            }
        };
        for import in imports {
            let Some(other) = file_of(tree, &import.path) else {
                complain(
                    import.line,
                    format!("crate::{} leads to no file", import.path.join("::")),
                );
                continue;
            };
            if other == *file {
                continue;
            }
            let edges = graph.entry(file.clone()).or_default();
            edges.entry(other.clone()).or_insert(import.line);
            // Who is on no floor is told so himself.
            let Some(floor) = floor_of(&other, floors) else {
                continue;
            };
            if floor.height > own.height {
                complain(
                    import.line,
                    format!(
                        "{}, on floor {}, imports {other}, on floor {}: imports go down",
                        own.place, own.height, floor.height
                    ),
                );
            } else if floor.height == own.height && floor.place != own.place {
                complain(
                    import.line,
                    format!(
                        "{} imports {other}, on the same floor: it does not lie below",
                        own.place
                    ),
                );
            }
        }
    }
    violations.extend(circles(&graph));
    violations
}

fn floor_of<'a>(file: &str, floors: &[Floor<'a>]) -> Option<Floor<'a>> {
    let module = module_of(file);
    let place = module.first()?;
    floors.iter().find(|floor| floor.place == place).copied()
}

/// The file that the longest part of a path leads to.
fn file_of(tree: &Tree, path: &[String]) -> Option<String> {
    (1..=path.len()).rev().find_map(|length| {
        let base = path[..length].join("/");
        let files = [format!("{base}.rs"), format!("{base}/mod.rs")];
        files.into_iter().find(|file| tree.contains_key(file))
    })
}

/// Each import that is part of a circle.
fn circles(graph: &Graph) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (file, others) in graph {
        for (other, line) in others {
            if let Some(way) = way_back(graph, other, file) {
                violations.push(Violation {
                    file: file.clone(),
                    line: *line,
                    rule: format!("a circle: it imports {}", way.join(", which imports ")),
                });
            }
        }
    }
    violations
}

/// The files from one to another, both included, by the fewest imports.
fn way_back(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::from([from.to_owned()]);
    let mut ways = vec![vec![from.to_owned()]];
    while !ways.is_empty() {
        let mut next = Vec::new();
        for way in ways {
            let last = &way[way.len() - 1];
            if last == to {
                return Some(way);
            }
            for other in graph.get(last).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(other.clone()) {
                    let mut longer = way.clone();
                    longer.push(other.clone());
                    next.push(longer);
                }
            }
        }
        ways = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOORS: [Floor; 4] = [
        Floor {
            place: "top",
            height: 3,
        },
        Floor {
            place: "left",
            height: 2,
        },
        Floor {
            place: "right",
            height: 2,
        },
        Floor {
            place: "bottom",
            height: 1,
        },
    ];

    fn told(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter();
        let tree = files
            .map(|&(file, text)| (file.to_owned(), text.to_owned()))
            .collect();
        let violations = check(&tree, &FLOORS);
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_tree_that_imports_downwards_is_right() {
        let files = [
            ("top.rs", "use crate::left::a; use crate::bottom::c;"),
            ("left/mod.rs", "pub mod a;"),
            ("left/a.rs", "use super::b::B; use crate::bottom::c::C;"),
            ("left/b.rs", "use crate::bottom::c;"),
            ("bottom/c.rs", "mod tests { use super::*; }"),
        ];
        assert_eq!(told(&files), [""; 0]);
    }

    #[test]
    fn an_import_upwards_is_told_with_its_line() {
        let files = [
            ("left/a.rs", ""),
            ("bottom/c.rs", "\n\nfn f() { crate::left::a::g() }"),
        ];
        assert_eq!(
            told(&files),
            ["bottom/c.rs:3: bottom, on floor 1, imports left/a.rs, on floor 2: imports go down"]
        );
    }

    #[test]
    fn an_import_sideways_is_told() {
        let files = [("left/a.rs", "use crate::right::b;"), ("right/b.rs", "")];
        assert_eq!(
            told(&files),
            ["left/a.rs:1: left imports right/b.rs, on the same floor: it does not lie below"]
        );
    }

    #[test]
    fn files_that_import_each_other_are_told_both() {
        let files = [
            ("left/a.rs", "use super::b;"),
            ("left/b.rs", "\nuse crate::left::a::A;"),
        ];
        assert_eq!(
            told(&files),
            [
                "left/a.rs:1: a circle: it imports left/b.rs, which imports left/a.rs",
                "left/b.rs:2: a circle: it imports left/a.rs, which imports left/b.rs",
            ]
        );
    }

    #[test]
    fn a_circle_of_three_is_told() {
        let files = [
            ("left/a.rs", "use super::b;"),
            ("left/b.rs", "use super::c;"),
            ("left/c.rs", "use super::a; use super::d;"),
            ("left/d.rs", ""),
        ];
        let told = told(&files);
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(
            told[0],
            "left/a.rs:1: a circle: it imports left/b.rs, which imports left/c.rs, which imports left/a.rs"
        );
    }

    #[test]
    fn what_is_on_no_floor_or_leads_nowhere_is_told() {
        let files = [
            ("cellar/a.rs", ""),
            ("left/a.rs", "use crate::no::where_; use super::gone;"),
        ];
        assert_eq!(
            told(&files),
            [
                "cellar/a.rs:1: it is on no floor",
                "left/a.rs:1: crate::no::where_ leads to no file",
                "left/a.rs:1: crate::left::gone leads to no file",
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        assert_eq!(told(&[("left/a.rs", "fn f( {")]).len(), 1);
    }
}
