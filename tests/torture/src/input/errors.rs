//! What an error may look like.

use anyhow::{Context, Result, bail, ensure};
use postgres::error::DbError;

/// An error as the server has sent it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) detail: Option<String>,
    pub(super) hint: Option<String>,
    /// Raised by the extension, and not by the server: known by the source file.
    pub(super) ours: bool,
}

impl From<&DbError> for Refusal {
    fn from(error: &DbError) -> Self {
        Self {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(ToOwned::to_owned),
            hint: error.hint().map(ToOwned::to_owned),
            ours: error.file().is_some_and(|file| file.ends_with(".rs")),
        }
    }
}

/// The server's answer, or that it gave none: then it has lost us.
pub(super) fn answer<T>(result: Result<T, postgres::Error>) -> Result<Result<T, Refusal>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.as_db_error() {
            Some(refusal) => Ok(Err(refusal.into())),
            None => Err(error).context("no answer from the server"),
        },
    }
}

impl Refusal {
    /// Is it an error for a user: with a code that means something, and, when it is ours, in
    /// PostgreSQL's style and with a hint?
    pub(super) fn check(&self) -> Result<()> {
        let class = self.code.get(..2).unwrap_or_default();
        match class {
            // A programme's error, damaged data, a failing system, one of no class.
            "XX" | "58" | "00" | "" => bail!("an internal error: {self:?}"),
            "57" => bail!("somebody ended it: {self:?}"),
            _ => {}
        }
        for text in [
            Some(&self.message),
            self.detail.as_ref(),
            self.hint.as_ref(),
        ] {
            let text = text.map_or("", String::as_str);
            for odd in [
                "panicked",
                "unwrap",
                "RUST_BACKTRACE",
                "src/",
                "utf-8",
                "\0",
            ] {
                ensure!(!text.contains(odd), "no text for users: {self:?}");
            }
        }
        if self.ours {
            self.check_style()
        } else {
            Ok(())
        }
    }

    fn check_style(&self) -> Result<()> {
        let first = self.message.chars().next().unwrap_or('.');
        ensure!(
            first.is_lowercase() || first == '"',
            "the message begins like a sentence: {self:?}"
        );
        ensure!(
            !self.message.ends_with('.'),
            "the message ends with a full stop: {self:?}"
        );
        ensure!(
            self.message.len() < 1500,
            "the message is too long: {self:?}"
        );
        for (what, text) in [("detail", &self.detail), ("hint", &self.hint)] {
            let Some(text) = text else { continue };
            let first = text.chars().next().unwrap_or(' ');
            let is_function = text.starts_with("counter_") || text.starts_with("counterx.");
            ensure!(
                first.is_uppercase() || first == '"' || is_function,
                "the {what} begins unlike a sentence: {self:?}"
            );
            ensure!(
                text.ends_with(['.', '!', '?', ';', ')', '}']),
                "the {what} does not end like a sentence: {self:?}"
            );
        }
        ensure!(self.hint.is_some(), "the error has no hint: {self:?}");
        Ok(())
    }

    /// Names in messages are quoted.
    pub(super) fn quotes(&self, name: &str) -> bool {
        self.message.contains(&format!("\"{name}\""))
    }
}

/// Is the log one of a server that lives well? Codes of errors are part of each line.
pub(super) fn check_log(log: &str) -> Result<()> {
    let marks = [
        " XX000 ",
        " XX001 ",
        " XX002 ",
        "PANIC:",
        "TRAP:",
        "FATAL:  could not",
        "panicked",
        "was terminated by signal",
        "exited with exit code",
        "WARNING:  leaked",
        "leak:",
    ];
    let bad: Vec<&str> = log
        .lines()
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        // Of an error, each time.
        .filter(|line| !line.contains("\"parallel worker\""))
        .take(5)
        .map(|line| line.get(..500).unwrap_or(line))
        .collect();
    ensure!(bad.is_empty(), "the server's log has\n{}", bad.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Refusal {
        Refusal {
            code: "22023".to_owned(),
            message: "counter name must not be empty".to_owned(),
            detail: None,
            hint: Some("A counter name has 1 to 255 bytes.".to_owned()),
            ours: true,
        }
    }

    #[test]
    fn takes_what_users_can_read_and_nothing_else() {
        assert!(refusal().check().is_ok());
        let bad = |change: &dyn Fn(&mut Refusal)| {
            let mut refusal = refusal();
            change(&mut refusal);
            assert!(refusal.check().is_err(), "{refusal:?}");
        };
        bad(&|refusal| refusal.code = "XX000".to_owned());
        bad(&|refusal| refusal.message.push('.'));
        bad(&|refusal| refusal.message = "Counter name is bad".to_owned());
        bad(&|refusal| refusal.hint = None);
        bad(&|refusal| refusal.detail = Some("it is 5".to_owned()));
        bad(&|refusal| {
            refusal.ours = false;
            refusal.message = "called `Option::unwrap()` on a `None` value".to_owned();
        });
        assert!(check_log("x 22023 ERROR:  name\n").is_ok());
        assert!(check_log("x XX000 ERROR:  name\n").is_err());
    }
}
