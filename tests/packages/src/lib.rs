//! What packages say of counterx is true: `META.json` is what PGXN takes, and all that names the version of the
//! release names the same one.

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result, anyhow, ensure};
    use pgxn_meta::dist::Distribution;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// That of `Cargo.toml`.
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(name)
    }

    fn read(name: &str) -> Result<String> {
        fs::read_to_string(file(name)).with_context(|| name.to_owned())
    }

    fn first_line_with<'a>(text: &'a str, start: &str) -> Result<&'a str> {
        text.lines()
            .find(|line| line.starts_with(start))
            .with_context(|| format!("no line begins with {start:?}"))
    }

    #[test]
    fn pgxn_takes_the_metadata() -> Result<()> {
        let meta: serde_json::Value = serde_json::from_str(&read("META.json")?)?;
        // What it provides: the script is made for a release; the document is there.
        let provides = &meta["provides"]["counterx"];
        ensure!(provides["version"] == VERSION, "{provides}");
        ensure!(
            provides["file"] == format!("sql/counterx--{VERSION}.sql"),
            "{provides}"
        );
        let docfile = provides["docfile"].as_str().context("no docfile")?;
        ensure!(file(docfile).is_file(), "there is no {docfile}");

        let mut wrong = meta.clone();
        wrong["license"] = "mine".into();
        ensure!(
            Distribution::try_from(wrong).is_err(),
            "the validator takes anything"
        );
        let meta = Distribution::try_from(meta).map_err(|error| anyhow!("META.json: {error}"))?;
        ensure!(meta.name() == "counterx");
        ensure!(meta.version().to_string() == VERSION, "{}", meta.version());
        Ok(())
    }

    /// make takes such a name for two, and would remove what the first of them is.
    #[test]
    fn nothing_is_removed_where_a_name_has_spaces() -> Result<()> {
        let directory = tempfile::tempdir()?;
        // The first half is there.
        fs::create_dir_all(directory.path().join("my/vendor"))?;
        let spaced = directory.path().join("my sources");
        fs::create_dir(&spaced)?;
        fs::copy(file("Makefile"), spaced.join("Makefile"))?;
        for verb in ["clean", "install", "all"] {
            let output = Command::new("make")
                .args(["--dry-run", verb])
                .current_dir(&spaced)
                .output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(
                !output.status.success() && error.contains("has spaces in it"),
                "{verb}: {error} {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        Ok(())
    }

    #[test]
    fn one_version_is_named_everywhere() -> Result<()> {
        let changelog = read("CHANGELOG.md")?;
        let newest = first_line_with(&changelog, "## ")?;
        ensure!(
            newest.split_whitespace().nth(1) == Some(VERSION),
            "CHANGELOG.md begins with {newest}, and Cargo.toml has {VERSION}"
        );
        let debian = read("debian/changelog")?;
        let newest = first_line_with(&debian, "counterx (")?;
        ensure!(
            newest.starts_with(&format!("counterx ({VERSION}-")),
            "debian/changelog begins with {newest}, and Cargo.toml has {VERSION}"
        );
        // Both are in Cargo.toml: that of the extension, and that of the other crates.
        let cargo = read("Cargo.toml")?;
        let versions: Vec<&str> = cargo
            .lines()
            .filter_map(|line| line.strip_prefix("version = "))
            .collect();
        let quoted = format!("\"{VERSION}\"");
        ensure!(
            versions == [&*quoted, &quoted],
            "Cargo.toml has the versions {versions:?}"
        );
        ensure!(
            read("counterx.control")?.contains("default_version = '@CARGO_VERSION@'"),
            "counterx.control has a version of its own"
        );
        // The script that leads to it.
        let scripts = fs::read_dir(file("sql"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<String>>>()?;
        ensure!(
            scripts.iter().any(|script| script.starts_with("counterx--")
                && script.ends_with(&format!("--{VERSION}.sql"))),
            "no script in sql/ updates to {VERSION}"
        );
        Ok(())
    }
}
