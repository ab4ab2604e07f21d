//! Files that lie elsewhere than in the server's own directories.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{create_database, settle};
use counterx_harness::{Cluster, pg_bin_dir, run, run_dir};

/// From PostgreSQL 18 on, neither library nor scripts have to be in the server's own directories.
#[test]
fn files_outside_of_the_server_are_found_from_18_on() -> Result<()> {
    let config = |what: &str| -> Result<PathBuf> {
        let output = run(Command::new(pg_bin_dir()?.join("pg_config")).arg(what))?;
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    };
    let version = run(Command::new(pg_bin_dir()?.join("postgres")).arg("--version"))?;
    let version = String::from_utf8(version.stdout)?;
    if ["15.", "16.", "17."]
        .iter()
        .any(|old| version.contains(&format!(" {old}")))
    {
        eprintln!("not tried, as it needs PostgreSQL 18: {version}");
        return Ok(());
    }
    let outside = run_dir()?.join(format!("outside-{}", std::process::id()));
    fs::create_dir_all(outside.join("extension"))?;
    fs::copy(
        config("--pkglibdir")?.join("counterx.so"),
        outside.join("counterx.so"),
    )?;
    for entry in fs::read_dir(config("--sharedir")?.join("extension"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("counterx") {
            fs::copy(
                entry.path(),
                outside.join("extension").join(entry.file_name()),
            )?;
        }
    }
    let place = outside.to_str().context("odd path")?;
    // Told from the server's own, which are there as well.
    let control = outside.join("extension/counterx.control");
    let text = fs::read_to_string(&control)?;
    let other = text.replace("comment = '", "comment = 'from outside: ");
    ensure!(other != text, "the control file has no comment");
    fs::write(&control, other)?;
    let cluster = Cluster::builder()
        .name("outside")
        .conf("extension_control_path", &format!("{place}:$system"))
        .conf("dynamic_library_path", &format!("{place}:$libdir"))
        .start()?;
    let mut client = create_database(&cluster, "outside")?;
    client.batch_execute("SELECT bump('x', 5)")?;
    settle(&mut client)?;
    let comment: String = client
        .query_one(
            "SELECT obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'counterx'",
            &[],
        )?
        .get(0);
    ensure!(comment.starts_with("from outside: "), "{comment}");
    let (mapped, pid): (String, i32) = {
        let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        (fs::read_to_string(format!("/proc/{pid}/maps"))?, pid)
    };
    ensure!(
        mapped.contains(&format!("{place}/counterx.so")),
        "process {pid} has another library:\n{mapped}"
    );
    // A newer version was put there, and the server was not restarted yet.
    let library = env!("CARGO_PKG_VERSION");
    let other = text.replace(&format!("'{library}'"), "'999.0'");
    ensure!(other != text, "the control file has no version {library}");
    fs::write(&control, other)?;
    let mut hint = || -> Result<String> {
        let row = client.query_one("SELECT hint FROM counterx.version()", &[])?;
        Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
    };
    let said = hint()?;
    ensure!(
        said == "Version 999.0 is installed: restart the server, and run ALTER EXTENSION counterx UPDATE.",
        "{said}"
    );
    drop(cluster);
    fs::remove_dir_all(&outside)?;
    Ok(())
}
