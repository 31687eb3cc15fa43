//! The table of NCCL's functions against the real library, and against libraries that won't do. No
//! GPU is needed: without one the real library still tells its version, makes unique ids, and says
//! cleanly why it can't initialise.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(clippy::disallowed_methods, reason = "NCCL takes real time")]

#[path = "nccl/library.rs"]
mod library;
mod processes;

use ganglion::nccl::{Communicator, LIBRARY_VARIABLE, Library, NcclError};
use processes::{WORKER, output, text};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tch::Device;

/// NCCL's own library: the one that the environment names, or else set-up's.
fn real() -> PathBuf {
    let named = std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from);
    let path = named.unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".libtorch/nccl/libnccl.so.2")
    });
    assert!(
        path.is_file(),
        "{} is not there: run `make setup`, or set {LIBRARY_VARIABLE} to NCCL's library",
        path.display()
    );
    path
}

/// What `gan-worker devices` says of NCCL.
fn listed(prepare: impl FnOnce(&mut Command)) -> serde_json::Value {
    let mut command = Command::new(WORKER);
    command.args(["devices", "--json"]);
    command.env_remove(LIBRARY_VARIABLE);
    prepare(&mut command);
    let told = output(command);
    assert!(told.status.success(), "{}", text(&told));
    let mut all: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    all["nccl"].take()
}

#[test]
fn the_real_library_tells_its_version_and_makes_unique_ids() {
    let library = Library::open(&real()).unwrap();
    assert!(!library.is_stand_in());
    assert!(library.version() >= 21_400, "{}", library.version());
    assert!(library.version_text().starts_with("2."));
    let ids: HashSet<[u8; 128]> = (0..3).map(|_| library.unique_id().unwrap().0).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn the_real_library_initialises_on_a_gpu_or_says_why_not() {
    let library = Library::open(&real()).unwrap();
    let id = library.unique_id().unwrap();
    let refused = Communicator::begin(&library, &id, 0, 1, Device::Cpu).unwrap_err();
    assert!(matches!(refused, NcclError::Device { .. }), "{refused}");
    ganglion::torch::load_cuda();
    if tch::Cuda::is_available() {
        let deadline = Duration::from_secs(60);
        let device = Device::Cuda(0);
        let formed = Communicator::init(&library, &id, 0, 1, device, deadline).unwrap();
        formed.close(deadline).unwrap();
    } else {
        let refused = Communicator::begin(&library, &id, 0, 1, Device::Cuda(0)).unwrap_err();
        assert!(!refused.to_string().is_empty());
    }
}

/// The same call past libtorch, which refuses a GPU that isn't there before NCCL is asked.
#[test]
fn without_a_driver_the_real_library_refuses_to_initialise_and_says_so() {
    use libloading::os::unix::Library as Loaded;
    use std::ffi::{CStr, c_char, c_int, c_void};
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Id([u8; 128]);
    // What Ganglion gives: the configuration as it was in 2.14.
    #[repr(C)]
    struct Config(usize, u32, u32, c_int, c_int);
    type GetId = unsafe extern "C" fn(*mut Id) -> c_int;
    type Init = unsafe extern "C" fn(*mut *mut c_void, c_int, Id, c_int, *mut Config) -> c_int;
    type Text = unsafe extern "C" fn(c_int) -> *const c_char;
    type Last = unsafe extern "C" fn(*mut c_void) -> *const c_char;
    if ganglion::torch::Driver::open().is_ok() {
        return; // The test before this one initialises there.
    }
    let mut config = Config(size_of::<Config>(), 0xcafe_beef, 21_400, 0, c_int::MIN);
    let mut handle = std::ptr::null_mut();
    // SAFETY: NCCL's library and its functions' types; places for what they write; their texts end
    // in NUL and live as long as the library.
    let (code, text) = unsafe {
        // Not unloaded: the threads of its unique ids live on.
        let nccl = std::mem::ManuallyDrop::new(Loaded::new(real()).unwrap());
        let mut id = Id([0; 128]);
        let made = nccl.get::<GetId>(b"ncclGetUniqueId").unwrap()(&mut id);
        assert_eq!(made, 0);
        let init = nccl.get::<Init>(b"ncclCommInitRankConfig").unwrap();
        let code = init(&mut handle, 1, id, 0, &mut config);
        let text = nccl.get::<Text>(b"ncclGetErrorString").unwrap()(code);
        let last = nccl.get::<Last>(b"ncclGetLastError").unwrap()(std::ptr::null_mut());
        let text = [text, last].map(|text| CStr::from_ptr(text).to_string_lossy().into_owned());
        (code, text.join("; "))
    };
    assert!(![0, 7].contains(&code), "{code} {text}");
    assert!(text.contains("CUDA driver"), "{code} {text}");
    assert!(handle.is_null());
}

#[test]
fn the_library_that_the_environment_names_wins_and_is_listed() {
    let stand_in = library::stand_in();
    let found = listed(|command| {
        command.env(LIBRARY_VARIABLE, &stand_in);
    });
    assert_eq!(found["stand_in"], true, "{found}");
    assert_eq!(found["path"], stand_in.to_str().unwrap(), "{found}");
    assert_eq!(found["version"], "2.28.9");
    for (name, says) in [("/no/such/libnccl.so.2", "/no/such"), ("libm.so.6", "nccl")] {
        let found = listed(|command| {
            command.env(LIBRARY_VARIABLE, name);
        });
        let why = found["missing"].as_str().unwrap();
        assert!(why.contains(name) && why.contains(says), "{why}");
        assert!(why.contains(LIBRARY_VARIABLE), "{why}");
    }
}

/// As when libtorch's CUDA half has brought its own.
#[test]
fn a_copy_that_is_loaded_already_is_the_one() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let copy = place.path().join("libnccl.so.2");
    let real = std::fs::canonicalize(real()).unwrap();
    if std::fs::hard_link(&real, &copy).is_err() {
        std::fs::copy(&real, &copy).unwrap();
    }
    let found = listed(|command| {
        command.env("LD_PRELOAD", &copy);
    });
    assert_eq!(found["path"], copy.to_str().unwrap(), "{found}");
    assert_eq!(found["stand_in"], false);
}

#[test]
fn a_library_that_lacks_a_function_or_is_too_old_is_refused_by_name() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let without_send: Vec<&str> = library::NAMES
        .into_iter()
        .filter(|n| *n != "ncclSend")
        .collect();
    let path = library::fake(place.path(), 22_809, &without_send);
    match Library::open(&path).unwrap_err() {
        NcclError::Symbol { symbol, path: at } => {
            assert_eq!((symbol, at), ("ncclSend", path));
        }
        other => panic!("{other}"),
    }
    let path = library::fake(place.path(), 21_005, &library::NAMES);
    let refused = Library::open(&path).unwrap_err();
    assert!(matches!(refused, NcclError::TooOld { .. }), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("2.10.5") && said.contains("2.14"), "{said}");
    let path = library::fake(place.path(), 21_400, &library::NAMES);
    assert_eq!(Library::open(&path).unwrap().version_text(), "2.14.0");
}
