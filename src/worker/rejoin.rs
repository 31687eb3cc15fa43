//! The end of a process that can't stop what it has in flight: it begins again, as a new worker.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Replaces this process by one that was called as this one was. What it holds is given up: the
/// other workers hold the same, or the last checkpoint does. Returns only if that fails.
///
/// Whatever hangs, in this process's threads or on its device, ends with it; its connections break,
/// so that nobody waits for it; its ports are free.
pub(super) fn start_over(reason: &str) -> std::io::Error {
    tracing::error!("starting over: {reason}");
    crate::nccl::close_on_exec();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "gan-worker".into());
    // This very program, even if its file was replaced meanwhile.
    Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .exec()
}
