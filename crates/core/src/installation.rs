//! Whether an installation is complete: which version is where, and what to do about what is missing.

use std::cmp::Ordering;

/// What there is of an installation.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// Version of the library that this process has loaded.
    pub library: &'a str,
    /// Version of the SQL objects of this database; none where the extension is not installed in it.
    pub objects: Option<&'a str>,
    /// Version that the control file on disk would install; none where there is no such file.
    pub files: Option<&'a str>,
    /// The server has loaded the library at its start.
    pub preloaded: bool,
}

/// Compares two versions by their numbers.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split(['.', '-', '+'])
            .map_while(|part| part.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

impl Installation<'_> {
    /// What to do, a sentence for each thing that is missing; empty when nothing is.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let Self { library, files, .. } = *self;
        let reload = match self.preloaded {
            true => "restart the server",
            false => "reconnect",
        };
        let mut hints = Vec::new();
        match files.map(|files| compare(files, library)) {
            None => hints.push(format!(
                "The extension's files are gone: install those of version {library} again."
            )),
            Some(Ordering::Less) => hints.push(format!(
                "The control file is older than the library: install all files of version {library}."
            )),
            Some(Ordering::Equal | Ordering::Greater) => {}
        }
        // Files that are newer than the library, in which case it has to be loaded first.
        let newer = files.filter(|files| compare(files, library) == Ordering::Greater);
        match (newer, self.objects.map(|objects| compare(objects, library))) {
            (_, None) => hints.push("Run CREATE EXTENSION counterx.".to_owned()),
            (Some(files), Some(Ordering::Greater)) => hints.push(format!(
                "The library is older than the SQL objects of this database: {reload}, to load version {files}."
            )),
            (Some(files), Some(_)) => hints.push(format!(
                "Version {files} is installed: {reload}, and run ALTER EXTENSION counterx UPDATE."
            )),
            (None, Some(Ordering::Greater)) => hints.push(
                "The library is older than the SQL objects of this database: install the newer one.".to_owned(),
            ),
            (None, Some(Ordering::Less)) => {
                hints.push("Run ALTER EXTENSION counterx UPDATE.".to_owned());
            }
            (None, Some(Ordering::Equal)) => {}
        }
        if !self.preloaded {
            hints.push(
                "Add counterx to shared_preload_libraries and restart the server: counter_hit() needs it, and workers start by themselves."
                    .to_owned(),
            );
        }
        hints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: Installation<'_> = Installation {
        library: "0.2.0",
        objects: Some("0.2.0"),
        files: Some("0.2.0"),
        preloaded: true,
    };

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (older, newer) in [
            ("0.2.0", "0.10.0"),
            ("0.2", "0.2.1"),
            ("0.9.9", "1.0.0"),
            ("1.0.0", "1.0.1-2"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        }
        assert_eq!(compare("0.2.0", "0.2.0"), Ordering::Equal);
    }

    #[test]
    fn nothing_is_said_of_what_is_complete() {
        assert_eq!(COMPLETE.hints(), Vec::<String>::new());
    }

    /// What is said of this one, where the library is preloaded, and where it is not.
    fn hint(of: Installation<'_>) -> [String; 2] {
        [true, false].map(|preloaded| {
            let mut hints = Installation { preloaded, ..of }.hints();
            if !preloaded {
                let last = hints.pop().unwrap();
                assert!(
                    last.starts_with("Add counterx to shared_preload_libraries"),
                    "{last}"
                );
            }
            assert_eq!(hints.len(), 1, "{hints:?}");
            hints.remove(0)
        })
    }

    #[test]
    fn each_thing_that_is_missing_has_its_hint() {
        let all = |text: &str| [text.to_owned(), text.to_owned()];
        assert_eq!(
            hint(Installation {
                objects: None,
                ..COMPLETE
            }),
            all("Run CREATE EXTENSION counterx.")
        );
        assert_eq!(
            hint(Installation {
                objects: Some("0.1.0"),
                ..COMPLETE
            }),
            all("Run ALTER EXTENSION counterx UPDATE.")
        );
        assert_eq!(
            hint(Installation {
                objects: Some("0.10.0"),
                ..COMPLETE
            }),
            all(
                "The library is older than the SQL objects of this database: install the newer one."
            )
        );
        assert_eq!(
            hint(Installation {
                files: None,
                ..COMPLETE
            }),
            all("The extension's files are gone: install those of version 0.2.0 again.")
        );
        assert_eq!(
            hint(Installation {
                files: Some("0.1.0"),
                ..COMPLETE
            }),
            all("The control file is older than the library: install all files of version 0.2.0.")
        );
        assert_eq!(
            hint(Installation {
                files: Some("0.3.0"),
                ..COMPLETE
            }),
            [
                "Version 0.3.0 is installed: restart the server, and run ALTER EXTENSION counterx UPDATE.",
                "Version 0.3.0 is installed: reconnect, and run ALTER EXTENSION counterx UPDATE."
            ]
        );
        assert_eq!(
            hint(Installation {
                files: Some("0.3.0"),
                objects: Some("0.3.0"),
                ..COMPLETE
            }),
            [
                "The library is older than the SQL objects of this database: restart the server, to load version 0.3.0.",
                "The library is older than the SQL objects of this database: reconnect, to load version 0.3.0."
            ]
        );
    }
}
