//! Where the stand-in for libnccl is. It is built here if cargo has not done it: `cargo test` makes
//! a library of the example `nccl_stand_in`, but not if it is told which targets to test.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The stand-in's path.
///
/// # Panics
/// If it can't be built; the message is the compiler's.
pub(crate) fn stand_in() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let program = std::env::current_exe().expect("this program has a path");
        let profile = program.ancestors().nth(2).expect("target/<profile>/deps");
        let library = profile.join("examples/libnccl_stand_in.so");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/stand_in");
        if is_older(&library, &sources) {
            build(&sources.join("lib.rs"), &library);
        }
        library
    })
    .clone()
}

fn is_older(library: &Path, sources: &Path) -> bool {
    let changed_at = |path: &Path| path.metadata().and_then(|about| about.modified()).ok();
    let Some(built_at) = changed_at(library) else {
        return true;
    };
    let entries = std::fs::read_dir(sources).expect("the stand-in's sources");
    let newest: Option<SystemTime> = entries
        .filter_map(|entry| changed_at(&entry.ok()?.path()))
        .max();
    newest > Some(built_at)
}

/// Builds a library of one crate that needs nothing but std: beside its place, and then it is moved
/// there, since other tests may be doing the same.
pub(crate) fn build(root: &Path, library: &Path) {
    let folder = library.parent().expect("a folder");
    std::fs::create_dir_all(folder).expect("a folder for the library");
    let new = library.with_extension(format!("{}.so", std::process::id()));
    // The compiler of the cargo that runs the tests, or whichever there is.
    let beside = std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
    let compiler = beside.filter(|path| path.exists());
    let built = Command::new(compiler.unwrap_or_else(|| PathBuf::from("rustc")))
        .args(["--edition", "2024", "--crate-name", "built_by_a_test"])
        .args(["--crate-type", "cdylib", "-C", "opt-level=2", "-o"])
        .args([new.as_path(), root])
        .output()
        .expect("rustc runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(
        built.status.success(),
        "{} does not build: {said}",
        root.display()
    );
    std::fs::rename(&new, library).expect("the library's place");
}

/// All of NCCL's names that Ganglion needs.
pub(crate) const NAMES: [&str; 16] = [
    "ncclGetVersion",
    "ncclGetUniqueId",
    "ncclGetErrorString",
    "ncclGetLastError",
    "ncclCommInitRankConfig",
    "ncclCommFinalize",
    "ncclCommDestroy",
    "ncclCommAbort",
    "ncclCommGetAsyncError",
    "ncclAllReduce",
    "ncclBroadcast",
    "ncclAllGather",
    "ncclSend",
    "ncclRecv",
    "ncclGroupStart",
    "ncclGroupEnd",
];

/// A library of this version that has these names, and no idea what they are for.
pub(crate) fn fake(place: &Path, version: i32, names: &[&str]) -> PathBuf {
    let mut source = String::new();
    for name in names {
        let function = match *name {
            "ncclGetVersion" => {
                format!("(v: *mut i32) -> i32 {{ unsafe {{ *v = {version} }}; 0 }}")
            }
            _ => "() -> i32 { 0 }".to_owned(),
        };
        let line = format!("#[unsafe(no_mangle)] pub extern \"C\" fn {name}{function}\n");
        source.push_str(&line);
    }
    let root = place.join(format!("made_{version}_{}.rs", names.len()));
    std::fs::write(&root, format!("#![allow(non_snake_case)]\n{source}")).expect("a source file");
    let library = root.with_extension("so");
    build(&root, &library);
    library
}
