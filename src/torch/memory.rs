//! How much memory this process has needed.

use super::{TorchError, check, cuda_index, sys};
use tch::Device;

/// The most bytes held at a time since the process began: on a CPU all of the process's (Linux
/// counts them), on a GPU what libtorch has taken from the driver.
///
/// # Errors
/// [`TorchError::Shim`], if it can't be asked.
pub fn peak_memory(device: Device) -> Result<u64, TorchError> {
    let mut bytes = 0;
    match device {
        Device::Cuda(_) => {
            // SAFETY: `bytes` is a place for one number; the shim catches a device that isn't there.
            check("ask for a GPU's memory", unsafe {
                sys::gan_peak_memory(cuda_index(device), &mut bytes)
            })?;
        }
        _ => {
            let refuse = |message: String| TorchError::Shim {
                doing: "ask for the process's memory",
                message,
            };
            let status = std::fs::read_to_string("/proc/self/status")
                .map_err(|error| refuse(format!("/proc/self/status: {error}")))?;
            bytes = high_water(&status)
                .ok_or_else(|| refuse("/proc/self/status has no VmHWM".to_owned()))?;
        }
    }
    Ok(bytes)
}

/// `VmHWM:   123 kB`, in bytes.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_peak() {
        let status = "Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(high_water(status), Some(2048 * 1024));
        assert_eq!(high_water("Name:\tx\n"), None);
        assert!(peak_memory(Device::Cpu).unwrap() > 1 << 20);
        // No GPU, no libtorch_cuda, or no such device: an error, and no abort.
        assert!(peak_memory(Device::Cuda(4_000)).is_err());
    }
}
