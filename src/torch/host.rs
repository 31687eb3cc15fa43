//! Memory that is a tensor for libtorch and a slice for Rust, never both at a time.

use super::{TorchError, sys};
use std::sync::atomic::{Ordering, fence};
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

/// A flat `f32` vector in host memory.
///
/// It is lent to libtorch as tensors ([`HostVector::lend`]) and read or written as a slice. tch's
/// tensors share memory behind shared handles, so a slice of one is sound only while no other
/// tensor reaches that memory; every access checks this.
#[derive(Debug)]
pub struct HostVector {
    /// Never handed out itself, and never resized.
    tensor: Tensor,
}

impl HostVector {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`TorchError::Tch`], if there is no memory.
    pub fn zeros(len: usize) -> Result<Self, TorchError> {
        let len = i64::try_from(len).unwrap_or(i64::MAX);
        let tensor = Tensor::f_zeros([len], (Kind::Float, Device::Cpu))?;
        Ok(Self { tensor })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.tensor.numel()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The vector as a tensor over the same memory. Until it and all made from it are dropped,
    /// there are no slices.
    pub fn lend(&mut self) -> Tensor {
        self.tensor.shallow_clone()
    }

    /// The values.
    ///
    /// # Errors
    /// [`TorchError::Lent`], while a lent tensor lives.
    pub fn as_slice(&self) -> Result<&[f32], TorchError> {
        let (pointer, len) = self.memory()?;
        // SAFETY: `memory` found `len` initialised floats that only this vector reaches. A tensor
        // that reaches them again would need `lend`, which the borrow forbids while the slice is.
        Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
    }

    /// The values, to write.
    ///
    /// # Errors
    /// [`TorchError::Lent`], while a lent tensor lives.
    pub fn as_mut_slice(&mut self) -> Result<&mut [f32], TorchError> {
        let (pointer, len) = self.memory()?;
        // SAFETY: as in `as_slice`, and `self` is borrowed for writing.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
    }

    /// Where the values lie and how many there are, after checking that only `self` reaches them.
    fn memory(&self) -> Result<(*mut f32, usize), TorchError> {
        let tensor = &self.tensor;
        let fits = tensor.kind() == Kind::Float
            && tensor.device() == Device::Cpu
            && tensor.is_contiguous();
        if !fits {
            return Err(TorchError::NotHost {
                found: format!("{tensor:?}"),
            });
        }
        // SAFETY: a live tensor; the shim only reads its reference counts.
        if unsafe { sys::gan_is_sole_owner(tensor.as_ptr()) } != 1 {
            return Err(TorchError::Lent);
        }
        // The last other handle may have been dropped on another thread: what was written there is
        // visible after this.
        fence(Ordering::Acquire);
        let pointer = tensor.data_ptr().cast::<f32>();
        match tensor.numel() {
            // An empty tensor has no memory, and a slice's pointer is never null.
            0 => Ok((std::ptr::NonNull::dangling().as_ptr(), 0)),
            len if !pointer.is_null() => Ok((pointer, len)),
            _ => Err(TorchError::NotHost {
                found: "a tensor without memory".to_owned(),
            }),
        }
    }
}

/// Writes `values` over all of a tensor in host memory, without a copy in between.
///
/// # Errors
/// [`TorchError::Shim`], if the tensor is not contiguous, of this kind and length, and the CPU's.
pub fn write<T: Element>(to: &Tensor, values: &[T]) -> Result<(), TorchError> {
    let fits = to.device() == Device::Cpu
        && to.kind() == T::KIND
        && to.is_contiguous()
        && to.numel() == values.len();
    if !fits {
        return Err(TorchError::Shim {
            doing: "write to a tensor",
            message: format!(
                "{} values of kind {:?} don't fit {to:?}",
                values.len(),
                T::KIND
            ),
        });
    }
    if !values.is_empty() {
        // SAFETY: the tensor has room for `values.len()` elements of this kind in a row, as checked
        // above. Nobody has a slice of a tensor's memory: a `HostVector` gives one only while no
        // tensor reaches it.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), to.data_ptr().cast::<T>(), values.len());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_a_tensor_or_a_slice_never_both() {
        let mut vector = HostVector::zeros(4).unwrap();
        vector.as_mut_slice().unwrap()[1] = 5.0;
        let lent = vector.lend();
        assert_eq!(lent.double_value(&[1]), 5.0);
        assert!(matches!(vector.as_slice(), Err(TorchError::Lent)));
        let mut view = lent.narrow(0, 2, 2);
        drop(lent);
        assert!(matches!(vector.as_mut_slice(), Err(TorchError::Lent)));
        let _ = view.fill_(7.0);
        drop(view);
        assert_eq!(vector.as_slice().unwrap(), [0.0, 5.0, 7.0, 7.0]);
        assert!(HostVector::zeros(0).unwrap().as_slice().unwrap().is_empty());
    }

    #[test]
    fn values_are_written_where_they_fit_and_nowhere_else() {
        let all = Tensor::zeros([2, 3], (Kind::Int64, Device::Cpu));
        write(&all.narrow(0, 1, 1), &[1i64, 2, 3]).unwrap();
        assert_eq!(
            Vec::<i64>::try_from(&all.view([6])).unwrap(),
            [0, 0, 0, 1, 2, 3]
        );
        assert!(write(&all, &[1i64, 2, 3]).is_err());
        assert!(write(&all, &[1f32; 6]).is_err());
        assert!(write(&all.transpose(0, 1), &[1i64; 6]).is_err());
        write::<i64>(&all.narrow(0, 0, 0), &[]).unwrap();
    }
}
