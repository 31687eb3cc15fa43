//! A random generator with a key and no past.

use super::{TorchError, check, cuda_index, failed, sys};
use crate::random::Key;
use std::ffi::c_void;
use std::ptr::NonNull;
use tch::{Device, Tensor};

/// A generator of libtorch's that starts at a [`Key`] and belongs to its owner alone: libtorch's
/// own is one for all threads, so what a thread draws from it depends on the others.
#[derive(Debug)]
pub struct Generator(NonNull<c_void>);

impl Generator {
    /// A generator for tensors on `device`. CPUs and GPUs draw different numbers from one key.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device is not there.
    pub fn new(device: Device, key: Key) -> Result<Self, TorchError> {
        // SAFETY: plain numbers; a device that is not there is an error, not undefined.
        let raw = unsafe { sys::gan_generator_new(cuda_index(device), key.seed()) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| failed("make a random generator"))
    }

    /// Fills `tensor` with draws from N(`mean`, `deviation`²).
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the tensor lies on another kind of device.
    pub fn normal_(
        &mut self,
        tensor: &mut Tensor,
        mean: f64,
        deviation: f64,
    ) -> Result<(), TorchError> {
        // SAFETY: a live tensor, and a generator that `new` made and `drop` hasn't freed.
        check("draw normal numbers", unsafe {
            sys::gan_normal_(tensor.as_ptr(), mean, deviation, self.0.as_ptr())
        })
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and freed only here.
        unsafe { sys::gan_generator_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Domain;
    use tch::Kind;

    fn draw(device: Device, step: u64) -> Tensor {
        let mut tensor = Tensor::zeros([1000], (Kind::Float, device));
        Generator::new(device, Key::new(Domain::Latents, &[0, step, 0]))
            .unwrap()
            .normal_(&mut tensor, 0.0, 1.0)
            .unwrap();
        tensor
    }

    #[test]
    fn a_draw_depends_on_its_key_and_on_nothing_else() {
        let first = draw(Device::Cpu, 1);
        tch::manual_seed(99);
        let _ = draw(Device::Cpu, 2);
        let again = std::thread::spawn(|| draw(Device::Cpu, 1)).join().unwrap();
        assert!(first.equal(&again));
        assert!(!first.equal(&draw(Device::Cpu, 2)));
        let mean = first.mean(Kind::Float).double_value(&[]);
        let deviation = first.std(true).double_value(&[]);
        assert!(
            mean.abs() < 0.1 && (deviation - 1.0).abs() < 0.1,
            "{mean} {deviation}"
        );
    }

    #[test]
    fn a_missing_device_is_an_error() {
        if tch::Cuda::device_count() == 0 {
            let error =
                Generator::new(Device::Cuda(0), Key::new(Domain::Latents, &[])).unwrap_err();
            assert!(matches!(error, TorchError::Shim { .. }));
        } else {
            assert!(draw(Device::Cuda(0), 1).equal(&draw(Device::Cuda(0), 1)));
        }
    }
}
