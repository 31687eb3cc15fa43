//! An extractor that the user names: a TorchScript module.
//!
//! It is given images `[n, c, s, s]`, f32 in -1 … 1, and returns features `[n, d]`.

use super::EvaluateError;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{CModule, Device, IValue, Kind, Tensor};

/// The module, shared by all threads.
#[derive(Clone, Debug)]
pub(super) struct Script {
    path: PathBuf,
    /// SHA-256 of the file.
    hash: String,
    module: Arc<CModule>,
    device: Device,
}

impl Script {
    pub(super) fn load(path: &Path, device: Device) -> Result<Self, EvaluateError> {
        let bytes = std::fs::read(path).map_err(|source| EvaluateError::Io {
            operation: "read the feature extractor",
            path: path.to_owned(),
            source,
        })?;
        let mut module =
            CModule::load_data_on_device(&mut &bytes[..], device).map_err(|error| {
                EvaluateError::Script {
                    path: path.to_owned(),
                    detail: first_line(&error.to_string()),
                }
            })?;
        module.f_set_eval()?;
        Ok(Self {
            path: path.to_owned(),
            hash: sha256(&bytes),
            module: Arc::new(module),
            device,
        })
    }

    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Features `[n, d]` of images `[n, c, s, s]`, f64 in host memory.
    pub(super) fn features(&self, pixels: &Tensor) -> Result<Tensor, EvaluateError> {
        let sizes = pixels.size();
        let n = sizes[0];
        let images = pixels
            .f_to_device(self.device)?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(127.5)?
            .f_sub_scalar(1.0)?;
        // The optimiser rewrites a module after it has seen how it is used: the same images would
        // then have features of other bits, by when they come. The setting is the thread's.
        tch::jit::f_set_graph_executor_optimize(false)?;
        let found = tch::no_grad(|| self.module.forward_is(&[IValue::Tensor(images)]));
        let found = found.map_err(|error| EvaluateError::Refused {
            path: self.path.clone(),
            n,
            channels: sizes[1],
            side: sizes[2],
            detail: first_line(&error.to_string()),
        })?;
        let wrong = |found: String| EvaluateError::NoFeatures {
            path: self.path.clone(),
            found,
            n,
        };
        match found {
            IValue::Tensor(features) => {
                let sizes = features.size();
                let kind = features.kind();
                let is_float = matches!(
                    kind,
                    Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double
                );
                if sizes.len() != 2 || sizes[0] != n || sizes[1] == 0 || !is_float {
                    return Err(wrong(format!("a tensor {sizes:?} of kind {kind:?}")));
                }
                Ok(features.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
            }
            IValue::Tuple(parts) => Err(wrong(format!("a tuple of {}", parts.len()))),
            IValue::TensorList(parts) => Err(wrong(format!("a list of {} tensors", parts.len()))),
            IValue::GenericDict(_) => Err(wrong("a dictionary".to_owned())),
            IValue::None => Err(wrong("None".to_owned())),
            _ => Err(wrong("something that is no tensor".to_owned())),
        }
    }
}

/// SHA-256, hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}"); // writing to a String can't fail
    }
    text
}

/// What libtorch said, without what was called and from where.
fn first_line(message: &str) -> String {
    let told = message.lines().map(str::trim);
    let told = told.filter(|line| !line.is_empty());
    let last = told
        .clone()
        .find(|line| line.starts_with("RuntimeError:"))
        .or_else(|| told.clone().next());
    last.unwrap_or("libtorch gave no reason").to_owned()
}
