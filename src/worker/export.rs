//! `gan-worker export`: a checkpoint's generator in forms that other programs read.

use super::pictures::{PictureError, Report, Weights, named};
use crate::checkpoint::{self, encode};
use crate::command::Failure;
use crate::export::{Program, to_onnx, to_torchscript};
use crate::model::Architecture;
use crate::sample::write_whole;
use clap::{Args, ValueEnum};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Which generator, and in which form.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: for onnxruntime, for torch.jit.load, and for load_state_dict of PyTorch's DCGAN example
  gan-worker export runs/mnist --out generator.onnx
  gan-worker export runs/mnist --out generator.pt
  gan-worker export runs/mnist --out generator.safetensors

TorchScript and ONNX take latents [n, z, 1, 1] and give images [n, c, s, s] in -1 … 1. What else the
generator is given comes after the latents, in this order: labels [n], integers; noise [n, k] from
N(0, 1), if it has hidden noise; coarse [n, c, s/2, s/2], for a level of a pyramid.")]
pub(super) struct Export {
    /// The checkpoint's folder, as in runs/mnist/checkpoints/step-00000500; or a run directory, for
    /// its newest checkpoint.
    checkpoint: PathBuf,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// What to write [default: what the file's name ends in].
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// Take the generator's newest weights even if the checkpoint has averaged ones (EMA).
    #[arg(long, alias = "no-ema")]
    raw: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What other programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Named tensors, as the state dict of PyTorch's DCGAN example (.safetensors).
    Safetensors,
    /// A module that stands alone (.pt).
    Torchscript,
    /// A graph of operators, version 17 (.onnx).
    Onnx,
}

impl Form {
    const ALL: [Form; 3] = [Form::Safetensors, Form::Torchscript, Form::Onnx];

    fn extension(self) -> &'static str {
        match self {
            Form::Safetensors => "safetensors",
            Form::Torchscript => "pt",
            Form::Onnx => "onnx",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Form::Safetensors => "safetensors",
            Form::Torchscript => "TorchScript",
            Form::Onnx => "ONNX",
        }
    }

    /// What was asked for, and the file's name; they must agree.
    fn of(format: Option<Form>, out: &Path) -> Result<(Self, PathBuf), PictureError> {
        let out = match format {
            Some(form) => named(out, form.extension()),
            None => out.to_owned(),
        };
        let is = |form: &Form| {
            let extension = out.extension();
            extension.is_some_and(|extension| extension.eq_ignore_ascii_case(form.extension()))
        };
        let found = Form::ALL.into_iter().find(is);
        match (format, found) {
            (Some(asked), Some(found)) if asked == found => Ok((asked, out)),
            (None, Some(found)) => Ok((found, out)),
            (Some(asked), _) => Err(PictureError::Command(format!(
                "{}: this is written as {}; expected a name that ends in .{}",
                out.display(),
                asked.name(),
                asked.extension()
            ))),
            (None, None) => Err(PictureError::Command(format!(
                "{}: expected a name that ends in .safetensors, .pt or .onnx, or --format",
                out.display()
            ))),
        }
    }
}

impl Export {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.json;
        self.write()?.print(json)
    }

    fn write(self) -> Result<Report, PictureError> {
        let (form, out) = Form::of(self.format, &self.out)?;
        let weights = Weights::open(&self.checkpoint, self.raw)?;
        let checkpoint::Manifest {
            model,
            job,
            step,
            digest,
            ..
        } = &weights.manifest;
        let program = Program::new(&Architecture::generator(model), &weights.tensors);
        let bytes = match form {
            Form::Safetensors => encode("generator", &weights.tensors)?,
            Form::Torchscript => to_torchscript(&program?)?,
            Form::Onnx => {
                let doc = format!(
                    "generator of job {job} after step {step}, {}; checkpoint {digest}",
                    weights.name()
                );
                to_onnx(&program?, &doc)?
            }
        };
        write_whole(&out, &bytes)?;
        let sha256: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let text = format!(
            "{}: {}, step {step}, {}, {} bytes, SHA-256 {sha256}",
            out.display(),
            form.name(),
            weights.name(),
            bytes.len()
        );
        let object = json!({
            "out": out,
            "format": form.name(),
            "checkpoint": weights.json(),
            "bytes": bytes.len(),
            "sha256": sha256,
        });
        Ok(Report { text, object })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_and_the_format_agree() {
        let of = |format, name: &str| Form::of(format, Path::new(name));
        assert_eq!(of(None, "g.ONNX").unwrap().0, Form::Onnx);
        let (form, path) = of(Some(Form::Torchscript), "out/g").unwrap();
        assert_eq!((form, path), (Form::Torchscript, "out/g.pt".into()));
        let refused = of(Some(Form::Onnx), "g.pt").unwrap_err().to_string();
        assert!(
            refused.contains("g.pt") && refused.contains(".onnx"),
            "{refused}"
        );
        for name in ["g", "g.pth", "g.png"] {
            let refused = of(None, name).unwrap_err().to_string();
            assert!(refused.contains(".safetensors, .pt or .onnx"), "{refused}");
        }
    }
}
