//! The extension's source tree keeps to its floors. `src/lib.rs` has the same table in words.

use counterx_floors::{Floor, check, read};
use std::path::Path;

const FLOORS: [(&str, u8); 21] = [
    ("lib", 8),
    // Tests inside the server.
    ("tests", 8),
    ("fdw_tests", 8),
    ("hits_tests", 8),
    ("ranking_tests", 8),
    ("windows_tests", 8),
    ("api", 7),
    ("process", 7),
    ("track", 6),
    ("hits", 5),
    ("write", 5),
    ("fold", 4),
    ("query", 4),
    ("bounds", 4),
    ("read", 3),
    ("settings", 3),
    ("store", 2),
    ("transaction", 2),
    ("figures", 2),
    ("failpoint", 2),
    ("pg", 1),
];

#[test]
fn the_extension_keeps_to_its_floors() {
    let floors = FLOORS.map(|(place, height)| Floor { place, height });
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
    let mut tree = read(&root).expect("the sources can be read");
    assert!(tree.len() > 60, "{} files", tree.len());
    // What is on a floor of its own is what is there.
    for (place, _) in FLOORS {
        let is_there = |file: &String| {
            file.strip_prefix(place)
                .is_some_and(|rest| rest.starts_with(['/', '.']))
        };
        assert!(tree.keys().any(is_there), "there is no {place}");
    }
    // The table of contents names all there is.
    tree.remove("lib.rs");
    let violations = check(&tree, &floors);
    let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(text.is_empty(), "\n{}", text.join("\n"));
}
