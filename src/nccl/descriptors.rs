//! Files that a process which begins anew must not leave open.

use std::ffi::c_int;

/// `F_SETFD` and `FD_CLOEXEC` of Linux's fcntl.h.
const SET_FLAGS: c_int = 2;
const CLOSE_ON_EXEC: c_int = 1;

unsafe extern "C" {
    fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
}

/// Has everything but the standard streams closed when this process becomes another program.
///
/// Rust opens all of its files so, and NCCL and its plug-ins don't: their sockets would stay open,
/// and peers would wait for whoever is gone.
pub fn close_on_exec() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<c_int>().ok());
    for descriptor in numbers.filter(|&descriptor| descriptor > 2) {
        // SAFETY: takes numbers only; one that is open no more is an error without an effect.
        unsafe { fcntl(descriptor, SET_FLAGS, CLOSE_ON_EXEC) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn nothing_stays_open_in_the_next_program() {
        let (near, _far) = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| {
                let near = std::net::TcpStream::connect(listener.local_addr()?)?;
                Ok((near, listener.accept()?))
            })
            .unwrap();
        let inherited = || {
            let place = format!("/proc/self/fd/{}", near.as_raw_fd());
            Command::new("test")
                .args(["-e", &place])
                .status()
                .unwrap()
                .success()
        };
        // SAFETY: clears the flag of a descriptor that this test owns.
        unsafe { fcntl(near.as_raw_fd(), SET_FLAGS, 0) };
        assert!(inherited());
        close_on_exec();
        assert!(!inherited());
    }
}
