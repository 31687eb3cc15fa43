//! Whether a device can compute as the job says, and what to tell people about it.

use super::TrainError;
use crate::config::{Job, Precision};
use crate::torch::{self, Rules};
use tch::Device;

/// The rules that the job's kernels follow.
pub(super) fn rules(job: &Job) -> Rules {
    Rules {
        deterministic: job.train.deterministic,
        tf32: job.train.precision == Precision::Tf32,
    }
}

/// What is to be known of the job's arithmetic on this device, in sentences.
///
/// # Errors
/// [`TrainError::Precision`], if the device doesn't have it.
pub(super) fn remarks(job: &Job, device: Device) -> Result<Vec<String>, TrainError> {
    let mut remarks = Vec::new();
    match (job.train.precision, device) {
        (Precision::F32, _) => {}
        (precision, Device::Cuda(index)) => {
            let (major, minor) = torch::compute_capability(index)?;
            if major < 8 {
                return Err(TrainError::Precision {
                    precision,
                    device: format!("a GPU of compute capability {major}.{minor}"),
                    needs: "needs 8.0 or more; use train.precision = \"f32\" or another GPU",
                });
            }
        }
        (precision @ Precision::Tf32, _) => {
            return Err(TrainError::Precision {
                precision,
                device: "a CPU".to_owned(),
                needs: "is NVIDIA's, and only GPUs of compute capability 8.0 or more have it; use \
                        train.precision = \"f32\" or \"bf16\"",
            });
        }
        (Precision::Bf16, _) => remarks.extend(slow_bf16(torch::has_fast_bf16())),
    }
    if !job.train.deterministic {
        remarks.push(match device {
            Device::Cuda(_) => {
                "train.deterministic = false: libraries choose kernels by timing them and may add \
                 in any order; two runs of this job differ, and its result can't be verified bit \
                 for bit"
                    .to_owned()
            }
            _ => {
                "train.deterministic = false changes nothing on a CPU, whose kernels give the same \
                  bits from run to run anyway"
                    .to_owned()
            }
        });
    }
    Ok(remarks)
}

fn slow_bf16(fast: bool) -> Option<String> {
    (!fast).then(|| {
        "this processor has no instructions for bfloat16 (avx512_bf16, or ARM's bf16): \
         train.precision = \"bf16\" works, but is slower than \"f32\" here"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_bfloat16_is_told_of() {
        assert_eq!(slow_bf16(true), None);
        assert!(slow_bf16(false).is_some_and(|text| text.contains("slower")));
    }
}
