//! Convolutions that are faster than libtorch's own on a CPU, for networks that learn.
//!
//! Both are for kernel 4, stride 2 and padding 1, DCGAN's, and have all gradients, of any order.

use super::{TorchError, check, sys};
use std::ffi::c_int;
use std::ptr;
use tch::Tensor;
use torch_sys::C_tensor;

/// A convolution (or a transposed one) by Winograd's minimal filtering: nine products instead of
/// sixteen, in `f32`. Rounding is that of libtorch's own or less.
///
/// # Shapes
/// `[n, c, h, w]` with sides that are multiples of 4 and `[out, c, 4, 4]` to `[n, out, h/2, w/2]`;
/// transposed, `[n, c, h, w]` with even sides and `[c, out, 4, 4]` to `[n, out, 2·h, 2·w]`.
///
/// # Errors
/// [`TorchError::Shim`], for other shapes or kinds among others.
pub fn winograd(x: &Tensor, weight: &Tensor, transposed: bool) -> Result<Tensor, TorchError> {
    convolve(sys::gan_winograd, x, weight, transposed)
}

/// A convolution (or a transposed one) with kernel 4, stride 2 and padding 1, whose weight's gradient
/// is computed as one matrix product: faster on a CPU where images have few positions.
///
/// # Shapes
/// `[n, c, h, w]` with even sides and `[out, c, 4, 4]` to `[n, out, h/2, w/2]`; transposed,
/// `[n, c, h, w]` and `[c, out, 4, 4]` to `[n, out, 2·h, 2·w]`.
///
/// # Errors
/// [`TorchError::Shim`], for other shapes among others.
pub fn convolve_by_product(
    x: &Tensor,
    weight: &Tensor,
    transposed: bool,
) -> Result<Tensor, TorchError> {
    convolve(sys::gan_convolve_by_product, x, weight, transposed)
}

type Convolve =
    unsafe extern "C" fn(*const C_tensor, *const C_tensor, c_int, *mut *mut C_tensor) -> c_int;

fn convolve(
    by: Convolve,
    x: &Tensor,
    weight: &Tensor,
    transposed: bool,
) -> Result<Tensor, TorchError> {
    let mut out = ptr::null_mut();
    // SAFETY: two live tensors, and a place for one pointer.
    check("convolve", unsafe {
        by(
            x.as_ptr(),
            weight.as_ptr(),
            c_int::from(transposed),
            &mut out,
        )
    })?;
    // SAFETY: on success the shim has put a tensor there that is ours to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    type Ours = fn(&Tensor, &Tensor, bool) -> Result<Tensor, TorchError>;

    fn draw(shape: &[i64], factor: f64) -> Tensor {
        let len = shape.iter().product::<i64>();
        // Without a period, so that sums don't cancel and hide what is wrong.
        let values = (Tensor::arange(len, (Kind::Double, Device::Cpu)) * factor).square();
        values.sin().to_kind(Kind::Float).view(shape)
    }

    fn libtorchs(x: &Tensor, weight: &Tensor, transposed: bool) -> Tensor {
        let none = None::<&Tensor>;
        match transposed {
            true => x.conv_transpose2d(weight, none, [2, 2], [1, 1], [0, 0], 1, [1, 1]),
            false => x.conv2d(weight, none, [2, 2], [1, 1], [1, 1], 1),
        }
    }

    fn near(found: &Tensor, expected: &Tensor, what: &str) {
        assert_eq!(found.size(), expected.size(), "{what}");
        let error = (found - expected).abs().max().double_value(&[]);
        let scale = expected.abs().max().double_value(&[]);
        assert!(
            scale > 0.0 && error < 1e-5 * scale,
            "{what}: {error} of {scale}"
        );
    }

    /// The same numbers as libtorch's own convolution, but for rounding: forward, both gradients, and
    /// the gradients of a gradient's norm.
    fn is_a_convolution(ours: Ours, large: [i64; 2]) {
        for transposed in [false, true] {
            for channels_last in [false, true] {
                let order = |tensor: Tensor| {
                    let tensor = if channels_last {
                        super::super::channels_last(&tensor).unwrap()
                    } else {
                        tensor
                    };
                    tensor.set_requires_grad(true)
                };
                let [high, wide] = large;
                let x = order(match transposed {
                    true => draw(&[3, 5, high / 2, wide / 2], 0.37),
                    false => draw(&[3, 2, high, wide], 0.37),
                });
                let weight = order(draw(&[5, 2, 4, 4], 1.7));
                let what = format!("{large:?}, {transposed}, {channels_last}");
                let found = ours(&x, &weight, transposed).unwrap();
                let expected = libtorchs(&x, &weight, transposed);
                near(&found, &expected, &what);
                let cost = draw(&expected.size(), 0.9);
                let of = |y: &Tensor, create: bool| {
                    let cost = (y * &cost).sum(Kind::Float);
                    Tensor::run_backward(&[cost], &[&x, &weight], true, create)
                };
                for (found, expected) in of(&found, false).iter().zip(of(&expected, false)) {
                    near(found, &expected, &what);
                }
                let twice = |y: &Tensor| {
                    let slope = of(&y.square(), true).remove(0);
                    Tensor::run_backward(
                        &[slope.square().sum(Kind::Float)],
                        &[&x, &weight],
                        false,
                        false,
                    )
                };
                for (found, expected) in twice(&found).iter().zip(twice(&expected)) {
                    near(found, &expected, &what);
                }
            }
        }
    }

    #[test]
    fn a_convolution_by_product_is_a_convolution() {
        is_a_convolution(convolve_by_product, [4, 6]);
        let x = Tensor::zeros([1, 2, 5, 4], (Kind::Float, Device::Cpu));
        let error = convolve_by_product(&x, &draw(&[5, 2, 4, 4], 1.0), false).unwrap_err();
        assert!(error.to_string().contains("even sides"), "{error}");
    }

    #[test]
    fn a_convolution_by_winograds_filtering_is_a_convolution() {
        is_a_convolution(winograd, [4, 8]);
        is_a_convolution(winograd, [12, 4]);
    }

    #[test]
    fn winograd_takes_images_block_by_block_and_none_sees_its_neighbours() {
        // Tiles of one image are more than a block's.
        let x = draw(&[3, 2, 72, 68], 0.37);
        let weight = draw(&[5, 2, 4, 4], 1.7);
        let whole = winograd(&x, &weight, false).unwrap();
        near(&whole, &libtorchs(&x, &weight, false), "large images");
        // Two blocks, the second not full.
        let x = draw(&[70, 2, 8, 8], 0.37);
        let whole = winograd(&x, &weight, false).unwrap();
        near(&whole, &libtorchs(&x, &weight, false), "many images");
        let alone = winograd(&x.narrow(0, 69, 1), &weight, false).unwrap();
        near(&alone, &whole.narrow(0, 69, 1), "the last one");
    }

    #[test]
    fn what_winograd_is_not_for_is_refused() {
        let weight = draw(&[5, 2, 4, 4], 1.7);
        for (x, weight, transposed, words) in [
            (
                draw(&[1, 2, 6, 4], 1.0),
                weight.copy(),
                false,
                "multiples of 4",
            ),
            (
                draw(&[1, 5, 3, 4], 1.0),
                weight.copy(),
                true,
                "multiples of 2",
            ),
            (draw(&[1, 5, 4, 4], 1.0), weight.copy(), false, "2 channels"),
            (
                draw(&[1, 2, 4, 4], 1.0),
                draw(&[5, 2, 3, 3], 1.0),
                false,
                "4x4",
            ),
            (
                draw(&[1, 2, 4, 4], 1.0).to_kind(Kind::Double),
                weight.to_kind(Kind::Double),
                false,
                "f32",
            ),
        ] {
            let error = winograd(&x, &weight, transposed).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
