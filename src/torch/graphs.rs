//! CUDA graphs: what a stream was given, recorded once and given again as a whole.
//!
//! The plug-in `graphs.cpp` is carried in the binary, if CUDA's headers were there when it was
//! built, and loaded from memory once libtorch's CUDA half is. So one binary serves machines with
//! and without GPUs, and no file has to be beside it.

use super::{Stream, TorchError, load_cuda};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;
use tch::Device;

/// The plug-in's version that this file knows.
const VERSION: c_int = 1;

/// Whether there are CUDA graphs, or why not.
///
/// # Errors
/// The reason, for people.
pub fn graphs_available() -> Result<(), String> {
    plugin().map(|_| ()).map_err(str::to_owned)
}

/// The plug-in's functions; `graphs.cpp` says what each does.
struct Plugin {
    error: unsafe extern "C" fn() -> *const c_char,
    pool: unsafe extern "C" fn(*mut u64, *mut u64) -> c_int,
    begin: unsafe extern "C" fn(u64, u64) -> *mut c_void,
    end: unsafe extern "C" fn(*mut c_void) -> c_int,
    replay: unsafe extern "C" fn(*mut c_void) -> c_int,
    free: unsafe extern "C" fn(*mut c_void),
}

fn plugin() -> Result<&'static Plugin, &'static str> {
    static PLUGIN: OnceLock<Result<Plugin, String>> = OnceLock::new();
    PLUGIN.get_or_init(load).as_ref().map_err(String::as_str)
}

impl Plugin {
    fn check(&self, doing: &'static str, code: c_int) -> Result<(), TorchError> {
        if code == 0 {
            Ok(())
        } else {
            Err(self.failed(doing))
        }
    }

    fn failed(&self, doing: &'static str) -> TorchError {
        // SAFETY: never null, ends in NUL, and lives until this thread's next failure.
        let message = unsafe { CStr::from_ptr((self.error)()) };
        TorchError::Shim {
            doing,
            message: super::first_lines(&message.to_string_lossy()),
        }
    }
}

#[cfg(not(gan_graphs))]
fn load() -> Result<Plugin, String> {
    let _ = (load_cuda, VERSION);
    Err(
        "this binary was built without CUDA's headers (deploy/libtorch.py lays them out)"
            .to_owned(),
    )
}

#[cfg(gan_graphs)]
fn load() -> Result<Plugin, String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    static BYTES: &[u8] = include_bytes!(env!("GAN_GRAPHS_PLUGIN"));
    if !load_cuda() {
        return Err("libtorch has no CUDA half here (libtorch_cuda.so)".to_owned());
    }
    let file = memory_file(BYTES)
        .map_err(|error| format!("there is no memory for the plug-in: {error}"))?;
    // SAFETY: the plug-in that this binary was built with; its initialisers do nothing but set up
    // thread-local memory.
    let library = unsafe { Library::open(Some(&file.path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("the plug-in doesn't fit this libtorch: {error}"))?;
    // SAFETY: the functions' signatures are those of graphs.cpp, which was built with this file; and
    // the library stays loaded, so that they may be kept.
    let plugin = unsafe {
        let find = |error: libloading::Error| error.to_string();
        let version: unsafe extern "C" fn() -> c_int =
            *library.get(b"gan_graph_version\0").map_err(find)?;
        let found = version();
        if found != VERSION {
            return Err(format!(
                "the plug-in has version {found} instead of {VERSION}"
            ));
        }
        Plugin {
            error: *library.get(b"gan_graph_error\0").map_err(find)?,
            pool: *library.get(b"gan_graph_pool\0").map_err(find)?,
            begin: *library.get(b"gan_graph_begin\0").map_err(find)?,
            end: *library.get(b"gan_graph_end\0").map_err(find)?,
            replay: *library.get(b"gan_graph_replay\0").map_err(find)?,
            free: *library.get(b"gan_graph_free\0").map_err(find)?,
        }
    };
    std::mem::forget(library);
    Ok(plugin)
}

/// A file that is nowhere but in memory.
#[cfg(gan_graphs)]
struct MemoryFile {
    /// Where this process finds it, while it is open.
    path: String,
    _file: std::fs::File,
}

#[cfg(gan_graphs)]
fn memory_file(bytes: &[u8]) -> std::io::Result<MemoryFile> {
    use std::ffi::c_uint;
    use std::io::Write;
    use std::os::fd::{AsRawFd, FromRawFd};

    const CLOSE_ON_EXEC: c_uint = 1;
    unsafe extern "C" {
        fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    }
    // SAFETY: a name that ends in NUL; Linux 3.17 and glibc 2.27 have the function, and libtorch
    // wants newer ones.
    let descriptor = unsafe { memfd_create(c"ganglion-graphs".as_ptr(), CLOSE_ON_EXEC) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was opened just now, and that nobody else knows.
    let mut file = unsafe { std::fs::File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    Ok(MemoryFile {
        path: format!("/proc/self/fd/{}", file.as_raw_fd()),
        _file: file,
    })
}

/// Memory for the intermediates of graphs that are never under way at the same time and keep
/// nothing for each other: they share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphPool {
    device: Device,
    id: (u64, u64),
}

impl GraphPool {
    /// A pool on a GPU.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if there are no CUDA graphs here.
    pub fn new(device: Device) -> Result<Self, TorchError> {
        let plugin = plugin_for("make room for graphs")?;
        let mut id = (0, 0);
        // SAFETY: places for two numbers.
        plugin.check("make room for graphs", unsafe {
            (plugin.pool)(&mut id.0, &mut id.1)
        })?;
        Ok(Self { device, id })
    }
}

fn plugin_for(doing: &'static str) -> Result<&'static Plugin, TorchError> {
    plugin().map_err(|why| TorchError::Shim {
        doing,
        message: why.to_owned(),
    })
}

/// Work that was recorded. It knows the addresses of the tensors that it reads and writes: whoever
/// replays it sees to it that they live and are the ones that are meant.
#[derive(Debug)]
pub struct Graph {
    raw: NonNull<c_void>,
    plugin: &'static Plugin,
}

// SAFETY: a graph may be used from any thread, by one at a time: `replay` is for who holds it, and
// without `Sync` that is one thread.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plugin")
    }
}

impl Graph {
    /// Records what `body` gives to the device, none of which is done. `stream` is current
    /// meanwhile, and must be none of the default ones. What `body` allocates comes from `pool`, and
    /// what it lets go may be used again by what is recorded later.
    ///
    /// `body` must not wait for the device.
    ///
    /// # Errors
    /// `body`'s; or [`TorchError::Shim`], if something in it can't be recorded.
    pub fn capture<E: From<TorchError>>(
        pool: &GraphPool,
        stream: Stream,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        const DOING: &str = "record a CUDA graph";
        let plugin = plugin_for(DOING)?;
        let _guard = stream.guard()?;
        // SAFETY: plain numbers; `stream` is this thread's current one until the guard ends.
        let raw = unsafe { (plugin.begin)(pool.id.0, pool.id.1) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(plugin.failed(DOING).into());
        };
        // From here on dropping it frees it.
        let graph = Self { raw, plugin };
        // A panic must not leave the stream recording.
        let done = super::catch(DOING, body);
        // SAFETY: `begin` made it, on this thread and stream.
        let ended = plugin.check(DOING, unsafe { (plugin.end)(graph.raw.as_ptr()) });
        done?;
        ended?;
        Ok(graph)
    }

    /// Gives the calling thread's current stream all that was recorded.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device has failed.
    pub fn replay(&self) -> Result<(), TorchError> {
        // SAFETY: `capture` ended it well, and it lives as long as `self`.
        self.plugin.check("replay a CUDA graph", unsafe {
            (self.plugin.replay)(self.raw.as_ptr())
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `begin`, freed only here.
        unsafe { (self.plugin.free)(self.raw.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn where_there_are_no_graphs_there_is_a_reason() {
        match graphs_available() {
            Ok(()) => on_a_gpu(),
            Err(why) => {
                assert!(why.contains("CUDA") || why.contains("libtorch"), "{why}");
                let error = GraphPool::new(Device::Cuda(0)).unwrap_err();
                assert!(error.to_string().contains(&why), "{error}");
            }
        }
    }

    /// A graph reads what is there when it is replayed.
    fn on_a_gpu() {
        let gpu = Device::Cuda(0);
        let pool = GraphPool::new(gpu).unwrap();
        let stream = Stream::from_pool(gpu, false).unwrap();
        let mut x = Tensor::ones([1000], (Kind::Float, gpu));
        let mut y = x.zeros_like();
        let graph = Graph::capture(&pool, stream, || {
            Ok::<_, TorchError>(y.f_copy_(&(&x * 2.0 + 1.0))?)
        })
        .unwrap();
        assert_eq!(y.max().double_value(&[]), 0.0, "it was recorded, not done");
        for value in [1.0, 5.0] {
            let _ = x.fill_(value);
            graph.replay().unwrap();
            assert_eq!(y.min().double_value(&[]), 2.0 * value + 1.0);
        }
        // What waits for the device can't be recorded; and afterwards all goes on.
        let failed = Graph::capture(&pool, stream, || {
            let _ = x.sum(Kind::Float).double_value(&[]);
            Ok::<_, TorchError>(())
        });
        assert!(failed.is_err());
        assert_eq!((&x + 1.0).max().double_value(&[]), 6.0);
    }
}
