//! Packing (PacGAN: Lin et al. 2018, arXiv 1712.04086): D sees m images at a time, all real or all
//! fake, and so can tell a set that lacks variety.

use crate::torch::{TorchError, channels_last, is_channels_last};
use tch::Tensor;

/// Images `j·m … j·m + m - 1` become pack j, their channels one after the other.
///
/// # Shapes
/// `[b, c, s, s]` to `[b/m, m·c, s, s]`, in the memory order of the images.
///
/// # Errors
/// [`TorchError`], if b is no multiple of m.
pub fn pack(images: &Tensor, m: u32) -> Result<Tensor, TorchError> {
    if m == 1 {
        return Ok(images.shallow_clone());
    }
    let m = i64::from(m);
    let [count, channels, height, width] = images.size()[..] else {
        return Err(TorchError::Shim {
            doing: "pack images",
            message: format!("they are of shape {:?}", images.size()),
        });
    };
    let packed = images.f_reshape([count / m, m * channels, height, width])?;
    match is_channels_last(images) {
        true => channels_last(&packed),
        false => Ok(packed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn a_pack_is_whole_images_side_by_side() {
        let images = Tensor::arange(6 * 2 * 9, (Kind::Float, Device::Cpu)).view([6, 2, 3, 3]);
        for images in [channels_last(&images).unwrap(), images] {
            let packed = pack(&images, 3).unwrap();
            assert_eq!(packed.size(), [2, 6, 3, 3]);
            assert_eq!(is_channels_last(&packed), is_channels_last(&images));
            for (pack, place) in [(0, 0), (1, 2)] {
                let image = packed.get(pack).narrow(0, place * 2, 2);
                assert!(image.equal(&images.get(pack * 3 + place)));
            }
            assert!(pack(&images, 1).unwrap().equal(&images));
            assert!(pack(&images, 4).is_err());
        }
    }
}
