//! TorchScript: a generator for `torch.jit.load` and libtorch in C++.

use super::{ExportError, Operation, Program};
use crate::checkpoint::Kind;
use crate::model::architecture::{BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM};
use crate::torch::{Script, ScriptTensor, TorchError};
use std::fmt::Write;
use tch::Tensor;

/// A file that `torch.jit.load` reads: a module whose `forward` takes latents, `[n, latent]` or
/// `[n, latent, 1, 1]`, and gives images `[n, c, s, s]` in -1 … 1. Its state dict is the
/// generator's.
///
/// # Errors
/// [`ExportError::Torch`].
pub fn to_torchscript(program: &Program<'_>) -> Result<Vec<u8>, ExportError> {
    let tensor = |data: &crate::checkpoint::TensorData| -> Result<Tensor, TorchError> {
        let shape: Vec<i64> = data.shape.iter().map(|&side| side as i64).collect();
        let kind = match data.kind {
            Kind::F32 => tch::Kind::Float,
            Kind::I64 => tch::Kind::Int64,
        };
        Ok(Tensor::f_from_data_size(&data.bytes, &shape, kind)?)
    };
    let is_buffer = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        last.starts_with("running_") || last == "num_batches_tracked"
    };
    let tensors = program.tensors.iter().map(|data| {
        Ok(ScriptTensor {
            name: &data.name,
            tensor: tensor(data)?,
            buffer: is_buffer(&data.name),
        })
    });
    let script = Script {
        name: "Generator",
        source: &source(program),
        tensors: tensors.collect::<Result<_, TorchError>>()?,
    };
    Ok(script.compile()?)
}

/// `forward`, line by line.
fn source(program: &Program<'_>) -> String {
    let mut text = format!(
        "def forward(self, latents):\n    x = latents.reshape([-1, {}, 1, 1])\n",
        program.latent
    );
    for operation in &program.operations {
        let line = match operation {
            Operation::ConvTranspose {
                weight,
                stride,
                padding,
                ..
            } => format!(
                "torch.conv_transpose2d(x, {}, None, [{stride}, {stride}], [{padding}, {padding}])",
                attribute(weight)
            ),
            Operation::BatchNorm { layer } => {
                let part = |name: &str| attribute(&format!("{layer}.{name}"));
                format!(
                    "torch.batch_norm(x, {}, {}, {}, {}, False, {BATCH_NORM_MOMENTUM:?}, {BATCH_NORM_EPSILON:?}, False)",
                    part("weight"),
                    part("bias"),
                    part("running_mean"),
                    part("running_var")
                )
            }
            Operation::Relu => "torch.relu(x)".to_owned(),
            Operation::Tanh => "torch.tanh(x)".to_owned(),
        };
        // A String takes all that is written to it.
        let _ = writeln!(text, "    x = {line}");
    }
    text + "    return x\n"
}

/// `self.main.0.weight` as an expression: names that are numbers go through `getattr`.
fn attribute(name: &str) -> String {
    name.split('.').fold("self".to_owned(), |place, part| {
        match part.starts_with(|first: char| first.is_ascii_digit()) {
            true => format!("getattr({place}, \"{part}\")"),
            false => format!("{place}.{part}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Example, near};
    use super::*;
    use tch::CModule;

    #[test]
    fn the_module_computes_what_the_generator_does() {
        let example = Example::new();
        let file = to_torchscript(&example.program()).unwrap();
        assert_eq!(file, to_torchscript(&example.program()).unwrap());
        let module = CModule::load_data(&mut &file[..]).unwrap();
        let expected = example.images();
        for latents in [example.latents.copy(), example.latents.view([-1, 6])] {
            near(&module.forward_ts(&[latents]).unwrap(), &expected);
        }
    }

    #[test]
    fn the_modules_state_dict_is_the_generators() {
        let example = Example::new();
        let file = to_torchscript(&example.program()).unwrap();
        let module = CModule::load_data(&mut &file[..]).unwrap();
        let named = module.named_parameters().unwrap();
        for tensor in &example.tensors {
            let found = named.iter().find(|(name, _)| *name == tensor.name);
            let buffer = tensor.name.contains("running") || tensor.kind == Kind::I64;
            assert_eq!(found.is_none(), buffer, "{}", tensor.name);
            if let Some((_, values)) = found {
                let shape: Vec<i64> = tensor.shape.iter().map(|&side| side as i64).collect();
                assert_eq!(values.size(), shape, "{}", tensor.name);
            }
        }
    }
}
