//! The GPU check itself, as far as a CPU can tell: its rows run, and one that lacks something fails.
#![cfg(feature = "torch")]

mod processes;

use processes::{Place, WORKER, output, text};
use std::path::Path;
use std::process::{Command, Output};

/// A rehearsal of these rows with the programs in this folder.
fn rehearse(rows: &str, binaries: &Path) -> Output {
    let mut command = Command::new("python3");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/gpu_check.py"))
        .args(["--rehearse", "--rows", rows, "--binaries"])
        .arg(binaries);
    output(command)
}

#[test]
fn rows_run_and_a_row_that_lacks_something_fails() {
    let binaries = Path::new(WORKER).parent().expect("a folder");
    let rehearsed = rehearse("devices,digests-alternating", binaries);
    let told = text(&rehearsed);
    assert!(rehearsed.status.success(), "{told}");
    assert!(told.contains("1 worker, 2 workers, 4 workers"), "{told}");
    assert!(told.contains("2 of 2 rows are good"), "{told}");

    let empty = Place::new();
    let rehearsed = rehearse("devices,digests-alternating", empty.path());
    let told = text(&rehearsed);
    assert_eq!(rehearsed.status.code(), Some(1), "{told}");
    assert!(told.contains("gan-worker is missing"), "{told}");
    assert!(told.contains("0 of 2 rows are good"), "{told}");
}
