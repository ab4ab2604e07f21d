//! Holds a source tree to its floors: a folder imports what lies below it, and no two files import each
//! other, directly or by way of others.
//!
//! What a file imports is what it names by a path that begins with `crate` or `super`, in a `use` or
//! anywhere else. Files are read as tokens, so comments and strings say nothing; what macros are given counts.

mod imports;
mod rules;

pub use imports::{Import, imports};
pub use rules::{Floor, Violation, check};

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The text of each file, by its path below the root, with `/` in between.
pub type Tree = BTreeMap<String, String>;

/// Reads all Rust files below a directory.
///
/// # Errors
/// When a file or directory cannot be read, or is not UTF-8.
pub fn read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut directories = vec![(root.to_path_buf(), String::new())];
    while let Some((directory, prefix)) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                directories.push((entry.path(), format!("{prefix}{name}/")));
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(entry.path())?;
                tree.insert(format!("{prefix}{name}"), text);
            }
        }
    }
    Ok(tree)
}
