//! TorchScript: a generator for `torch.jit.load` and libtorch in C++.

use super::{ExportError, Given, Operation, Part, Program};
use crate::checkpoint::Kind;
use crate::model::architecture::{BATCH_NORM_MOMENTUM, NORM_EPSILON};
use crate::torch::{Script, ScriptTensor, TorchError};
use std::fmt::Write;
use tch::Tensor;

/// A file that `torch.jit.load` reads: a module whose `forward` takes what the program is given, in
/// its order, and gives images `[n, c, s, s]` in -1 … 1. Latents may also be `[n, latent]`. Its state
/// dict is the generator's.
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
    let names: Vec<&str> = program.given.iter().map(|given| given.name()).collect();
    let mut text = format!("def forward(self, {}):\n", names.join(", "));
    // A String takes all that is written to it.
    let mut line = |line: &str| {
        let _ = writeln!(text, "    {line}");
    };
    for given in &program.given {
        line(&match given {
            Given::Latents(latent) => format!("latents = latents.reshape([-1, {latent}, 1, 1])"),
            Given::Labels(classes) => format!(
                "labels = torch.one_hot(labels.reshape([-1]), {classes}).to(latents.dtype).unsqueeze(-1).unsqueeze(-1)"
            ),
            Given::Noise(_) | Given::Coarse(_) => continue,
        });
    }
    line("x = latents");
    for (place, operation) in program.operations.iter().enumerate() {
        line(&format!("x = {}", expression(operation, place == 0)));
    }
    text + "    return x\n"
}

/// An operation on `x`, or on nothing, if it is the first.
fn expression(operation: &Operation, first: bool) -> String {
    match operation {
        Operation::Append { parts, side } => {
            let parts = parts.iter().map(|part| appended(part, *side));
            let all: Vec<String> = (!first)
                .then(|| "x".to_owned())
                .into_iter()
                .chain(parts)
                .collect();
            format!("torch.cat([{}], 1)", all.join(", "))
        }
        Operation::ConvTranspose {
            weight,
            stride,
            padding,
            output_padding: more,
            ..
        } => format!(
            "torch.conv_transpose2d(x, {}, None, [{stride}, {stride}], [{padding}, {padding}], [{more}, {more}])",
            attribute(weight)
        ),
        Operation::Linear { weight, bias } => {
            let product = format!("torch.matmul(x, {}.t())", attribute(weight));
            match bias {
                Some(bias) => format!("{product} + {}", attribute(bias)),
                None => product,
            }
        }
        Operation::BatchNorm { layer } => {
            let part = |name: &str| attribute(&format!("{layer}.{name}"));
            format!(
                "torch.batch_norm(x, {}, {}, {}, {}, False, {BATCH_NORM_MOMENTUM:?}, {NORM_EPSILON:?}, False)",
                part("weight"),
                part("bias"),
                part("running_mean"),
                part("running_var")
            )
        }
        Operation::Relu => "torch.relu(x)".to_owned(),
        Operation::Tanh => "torch.tanh(x)".to_owned(),
        Operation::Noise {
            range,
            strength,
            multiplicative,
            ..
        } => {
            let (from, to) = (range.start, range.end);
            let noise = format!("{strength:?} * noise[:, {from}:{to}].reshape(x.size())");
            match multiplicative {
                true => format!("x * (1.0 + {noise})"),
                false => format!("x + {noise}"),
            }
        }
        Operation::AddCoarse(by) => {
            let line = |dim: usize| format!(".repeat_interleave({by}, {dim})");
            format!("x + coarse{}{}", line(2), line(3))
        }
        Operation::Pixel => "x.unsqueeze(-1).unsqueeze(-1)".to_owned(),
    }
}

/// A part of a layer's input.
fn appended(part: &Part, side: Option<usize>) -> String {
    let everywhere = |text: String| match side {
        Some(side) => format!("{text}.expand([-1, -1, {side}, {side}])"),
        None => format!("{text}.flatten(1)"),
    };
    match part {
        Part::Latents(range) => everywhere(format!("latents[:, {}:{}]", range.start, range.end)),
        Part::OneHot => everywhere("labels".to_owned()),
        Part::Coarse(1) => "coarse".to_owned(),
        Part::Coarse(by) => format!("torch.avg_pool2d(coarse, [{by}, {by}])"),
    }
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
        for example in Example::all() {
            let file = to_torchscript(&example.program()).unwrap();
            assert_eq!(file, to_torchscript(&example.program()).unwrap());
            let module = CModule::load_data(&mut &file[..]).unwrap();
            let mut given: Vec<Tensor> = example
                .given()
                .into_iter()
                .map(|(_, value)| value)
                .collect();
            let expected = example.images();
            for latents in [example.latents.copy(), example.latents.view([-1, 6])] {
                given[0] = latents;
                near(&module.forward_ts(&given).unwrap(), &expected, example.name);
            }
        }
    }

    #[test]
    fn the_modules_state_dict_is_the_generators() {
        let example = Example::plain();
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
