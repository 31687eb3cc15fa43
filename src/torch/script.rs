//! TorchScript: modules that stand alone, for `torch.jit.load` and libtorch in any program.

use super::{TorchError, failed, sys};
use std::ffi::{CString, c_int};
use tch::Tensor;

/// A tensor of a [`Script`].
#[derive(Debug)]
pub struct ScriptTensor<'a> {
    /// Its name in the state dict; each dot leads into a module.
    pub name: &'a str,
    /// Its values.
    pub tensor: Tensor,
    /// Whether it is a buffer, which optimizers don't see, and no parameter.
    pub buffer: bool,
}

/// A TorchScript module.
#[derive(Debug)]
pub struct Script<'a> {
    /// Name of its class.
    pub name: &'a str,
    /// Its methods, as Python has them without the class around: `def forward(self, x): …`.
    pub source: &'a str,
    /// Its tensors.
    pub tensors: Vec<ScriptTensor<'a>>,
}

impl Script<'_> {
    /// Compiles it and gives the file's bytes. The same module gives the same bytes.
    ///
    /// # Errors
    /// [`TorchError::Shim`], for a source that doesn't compile among others.
    pub fn compile(&self) -> Result<Vec<u8>, TorchError> {
        const DOING: &str = "compile TorchScript";
        let text = |text: &str| {
            CString::new(text).map_err(|_| TorchError::Shim {
                doing: DOING,
                message: "a name or the source has a NUL in it".to_owned(),
            })
        };
        let (name, source) = (text(self.name)?, text(self.source)?);
        let names = self.tensors.iter().map(|tensor| text(tensor.name));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|t| t.tensor.as_ptr()).collect();
        let buffers: Vec<_> = self.tensors.iter().map(|t| c_int::from(t.buffer)).collect();
        // SAFETY: two strings and three lists of one length, of live strings and tensors; the shim
        // copies what it needs.
        let script = unsafe {
            sys::gan_script(
                name.as_ptr(),
                source.as_ptr(),
                pointers.as_ptr(),
                tensors.as_ptr().cast(),
                buffers.as_ptr(),
                pointers.len(),
            )
        };
        if script.is_null() {
            return Err(failed(DOING));
        }
        // SAFETY: not null, so a string of the shim's, whose bytes live until it is freed below.
        let bytes = unsafe {
            let length = sys::gan_script_length(script);
            std::slice::from_raw_parts(sys::gan_script_bytes(script).cast::<u8>(), length).to_vec()
        };
        // SAFETY: it was made by the shim, and nobody else has it.
        unsafe { sys::gan_script_free(script) };
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{CModule, Kind};

    fn script(source: &str) -> Result<Vec<u8>, TorchError> {
        let tensor = |name, buffer, value: f32| ScriptTensor {
            name,
            tensor: Tensor::from_slice(&[value, 2.0 * value]),
            buffer,
        };
        Script {
            name: "Line",
            source,
            tensors: vec![
                tensor("main.0.weight", false, 3.0),
                tensor("main.0.shift", true, 1.0),
            ],
        }
        .compile()
    }

    const SOURCE: &str = "
def forward(self, x):
    layer = getattr(self.main, \"0\")
    return x * layer.weight + layer.shift
";

    #[test]
    fn a_module_computes_what_its_source_says() {
        let bytes = script(SOURCE).unwrap();
        assert_eq!(bytes, script(SOURCE).unwrap(), "the same, byte for byte");
        let module = CModule::load_data(&mut &bytes[..]).unwrap();
        let y = module
            .forward_ts(&[Tensor::from_slice(&[1f32, 10.0])])
            .unwrap();
        assert_eq!(Vec::<f32>::try_from(&y).unwrap(), [4.0, 62.0]);
        let parameters: Vec<_> = module.named_parameters().unwrap();
        let (name, weight) = &parameters[0];
        assert_eq!(
            (name.as_str(), weight.kind()),
            ("main.0.weight", Kind::Float)
        );
    }

    #[test]
    fn a_source_that_is_wrong_is_an_error() {
        let error = script("def forward(self, x):\n    return x + self.nothing\n").unwrap_err();
        assert!(error.to_string().contains("nothing"), "{error}");
        assert!(script("\0").is_err());
    }
}
