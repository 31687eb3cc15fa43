//! A piece of memory that two processes of one host have mapped.
//!
//! It is read and written as atomic words and in no other way. So whatever the other process does to
//! it, at whatever time, what is read here is some number: never undefined behaviour, and never a
//! reason to trust it.
//!
//! The memory is a file without a name (`memfd`), which no process can shrink or grow once it is
//! sealed: no access can miss its end. The system takes it back with the last process that has it
//! mapped, however that ends.

use std::sync::atomic::AtomicU64;

/// Bytes of a word.
const WORD: usize = size_of::<AtomicU64>();

/// Words that another process may have mapped too.
#[derive(Debug)]
pub(super) struct Memory {
    map: memmap2::MmapRaw,
}

impl Memory {
    #[expect(unsafe_code, reason = "the one map of the collective room")]
    pub(super) fn words(&self) -> &[AtomicU64] {
        let count = self.map.len() / WORD;
        // SAFETY: the mapping is `map.len()` bytes long, readable, writable, and aligned to a page;
        // it stays where it is until `self` is dropped, which the borrow forbids. Its pages are
        // those of a file that is sealed against shrinking (`linux::create` seals it, and
        // `linux::open` refuses one that isn't), so all of them exist. Any bits are a valid word.
        // In this process nobody has another pointer to it; what other processes write are changes
        // of atomics.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), count) }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Memory, WORD};
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    /// Memory of this process, while it lets others map it.
    #[derive(Debug)]
    pub(in super::super) struct Offered {
        pub(in super::super) memory: Memory,
        file: File,
    }

    impl Offered {
        /// By which number this process has it open.
        pub(in super::super) fn descriptor(&self) -> u32 {
            self.file.as_raw_fd().unsigned_abs()
        }
    }

    /// `words` zeros.
    pub(in super::super) fn create(words: usize) -> io::Result<Offered> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("ganglion-collective", flags)?);
        file.set_len((words * WORD) as u64)?;
        fcntl_add_seals(&file, seals())?;
        let memory = map(&file, words)?;
        Ok(Offered { memory, file })
    }

    /// Memory of `words` words that the process `pid` has open by this number.
    pub(in super::super) fn open(pid: u32, descriptor: u32, words: usize) -> io::Result<Memory> {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"));
        // It may be anything, should another process have that number here: a file without seals
        // is not touched, and opening one must not wait.
        let target = std::fs::read_link(&path)?;
        if !target.to_string_lossy().starts_with("/memfd:ganglion-") {
            return Err(io::Error::other("what is there is no such memory"));
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        if !fcntl_get_seals(&file)?.contains(seals()) {
            return Err(io::Error::other("the memory is not sealed"));
        }
        if file.metadata()?.len() != (words * WORD) as u64 {
            return Err(io::Error::other("the memory is of another size"));
        }
        map(&file, words)
    }

    fn seals() -> SealFlags {
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
    }

    fn map(file: &File, words: usize) -> io::Result<Memory> {
        let map = memmap2::MmapOptions::new()
            .len(words * WORD)
            .map_raw(file)?;
        Ok(Memory { map })
    }
}

/// Where there are no sealed files without names.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::Memory;
    use std::io;

    #[derive(Debug)]
    pub(in super::super) struct Offered {
        pub(in super::super) memory: Memory,
    }

    impl Offered {
        pub(in super::super) fn descriptor(&self) -> u32 {
            0
        }
    }

    pub(in super::super) fn create(_: usize) -> io::Result<Offered> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn open(_: u32, _: u32, _: usize) -> io::Result<Memory> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) use elsewhere::{Offered, create, open};
#[cfg(target_os = "linux")]
pub(super) use linux::{Offered, create, open};

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_one_writes_the_other_reads() {
        let offered = create(1000).unwrap();
        let there = open(std::process::id(), offered.descriptor(), 1000).unwrap();
        offered.memory.words()[999].store(7, Ordering::Relaxed);
        assert_eq!(there.words().len(), 1000);
        assert_eq!(there.words()[999].load(Ordering::Relaxed), 7);
        // It outlives whoever offered it.
        drop(offered);
        assert_eq!(there.words()[999].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn memory_of_another_kind_or_size_is_not_mapped() {
        use std::os::fd::AsRawFd;
        let offered = create(10).unwrap();
        assert!(open(std::process::id(), offered.descriptor(), 11).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(80).unwrap();
        let descriptor = file.as_raw_fd().unsigned_abs();
        let error = open(std::process::id(), descriptor, 10).unwrap_err();
        assert!(error.to_string().contains("no such memory"), "{error}");
        // One that its owner could still shrink.
        let name = "ganglion-collective";
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let loose = std::fs::File::from(rustix::fs::memfd_create(name, flags).unwrap());
        loose.set_len(80).unwrap();
        let descriptor = loose.as_raw_fd().unsigned_abs();
        let error = open(std::process::id(), descriptor, 10).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
    }

    #[test]
    fn nobody_can_cut_it_short() {
        let offered = create(10).unwrap();
        let path = format!("/proc/self/fd/{}", offered.descriptor());
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        assert!(file.set_len(8).is_err());
    }
}
