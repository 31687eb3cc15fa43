//! The state as named tensors, and back.
//!
//! `generator`, `discriminator` and `generator_ema` are state dicts of PyTorch's DCGAN example;
//! `optimizer` holds Adam's moments under `generator.exp_avg.<name>` and so on, and the step.

use super::state::{Average, PlayerState, State};
use super::{Mismatch, TrainError};
use crate::checkpoint::{Kind, Snapshot, TensorData};
use crate::ids::Step;
use crate::model::architecture::{Entry, Source};
use crate::model::{Architecture, Player, view};
use crate::torch::TorchError;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

const OPTIMIZER: &str = "optimizer";
const AVERAGE: &str = "generator_ema";
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Copies the state to the host.
pub(super) fn save(
    state: &State,
    generator: &Architecture,
    discriminator: &Architecture,
) -> Result<Snapshot, TorchError> {
    let mut files = BTreeMap::new();
    let mut moments = Vec::new();
    for (architecture, player) in [
        (generator, &state.generator),
        (discriminator, &state.discriminator),
    ] {
        files.insert(
            architecture.player.to_string(),
            state_dict(
                architecture,
                &player.parameters,
                &player.running,
                player.batches_tracked,
            )?,
        );
        for (kind, flat) in MOMENTS.iter().zip([&player.exp_avg, &player.exp_avg_sq]) {
            let flat = flat.f_to_device(Device::Cpu)?;
            for parameter in &architecture.parameters {
                moments.push(floats(
                    moment_name(architecture.player, kind, &parameter.name),
                    parameter.shape.clone(),
                    &view(&flat, parameter)?,
                )?);
            }
        }
    }
    moments.push(integer("step".to_owned(), state.step.0 as i64));
    files.insert(OPTIMIZER.to_owned(), moments);
    if let Some(average) = &state.average {
        files.insert(
            AVERAGE.to_owned(),
            state_dict(
                generator,
                &average.parameters,
                &average.running,
                average.batches_tracked,
            )?,
        );
    }
    Ok(Snapshot {
        step: state.step,
        files,
    })
}

/// The state that `snapshot` holds, which must have an average if and only if `average` says so.
pub(super) fn load(
    snapshot: &Snapshot,
    generator: &Architecture,
    discriminator: &Architecture,
    average: bool,
    device: Device,
) -> Result<State, TrainError> {
    let fault = |file: &str, mismatch| TrainError::State {
        file: file.to_owned(),
        mismatch,
    };
    let generator_name = generator.player.to_string();
    let discriminator_name = discriminator.player.to_string();
    for name in snapshot.files.keys() {
        let known = [&generator_name, &discriminator_name, OPTIMIZER].contains(&name.as_str())
            || (average && name == AVERAGE);
        if !known {
            return Err(fault(name, Mismatch::ExtraFile));
        }
    }
    let file = |name: &str| match snapshot.files.get(name) {
        Some(tensors) => Reader::new(name, tensors),
        None => Err(fault(name, Mismatch::NoFile)),
    };

    let mut optimizer = file(OPTIMIZER)?;
    let mut player = |architecture: &Architecture| -> Result<PlayerState, TrainError> {
        let mut reader = file(&architecture.player.to_string())?;
        let (parameters, running, batches_tracked) = reader.network(architecture)?;
        reader.finish()?;
        let [exp_avg, exp_avg_sq] = MOMENTS.map(|kind| optimizer.moment(architecture, kind));
        Ok(PlayerState {
            parameters: to_device(&parameters, device)?,
            exp_avg: to_device(&exp_avg?, device)?,
            exp_avg_sq: to_device(&exp_avg_sq?, device)?,
            running: to_device(&running, device)?,
            batches_tracked,
        })
    };
    let (generator_state, discriminator_state) = (player(generator)?, player(discriminator)?);
    let step = optimizer.integer("step")?;
    optimizer.finish()?;
    if step != snapshot.step.0 as i64 {
        return Err(fault(
            OPTIMIZER,
            Mismatch::Count {
                name: "step".to_owned(),
                found: step,
                expected: snapshot.step.0 as i64,
            },
        ));
    }
    let average = average
        .then(|| -> Result<Average, TrainError> {
            let mut reader = file(AVERAGE)?;
            let (parameters, running, batches_tracked) = reader.network(generator)?;
            reader.finish()?;
            Ok(Average {
                parameters: to_device(&parameters, device)?,
                running: to_device(&running, device)?,
                batches_tracked,
            })
        })
        .transpose()?;
    Ok(State {
        step: Step(snapshot.step.0),
        generator: generator_state,
        discriminator: discriminator_state,
        average,
    })
}

/// A network from a state dict: flat parameters and running statistics, in host memory.
pub(super) fn load_network(
    file: &str,
    tensors: &[TensorData],
    architecture: &Architecture,
) -> Result<(Tensor, Tensor), TrainError> {
    let mut reader = Reader::new(file, tensors)?;
    let (parameters, running, _) = reader.network(architecture)?;
    reader.finish()?;
    Ok((parameters, running))
}

fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    Ok(tensor.f_to_device(device)?)
}

fn moment_name(player: Player, kind: &str, parameter: &str) -> String {
    format!("{player}.{kind}.{parameter}")
}

fn state_dict(
    architecture: &Architecture,
    parameters: &Tensor,
    running: &Tensor,
    batches_tracked: i64,
) -> Result<Vec<TensorData>, TorchError> {
    let flat = parameters.f_to_device(Device::Cpu)?;
    let running = host_values(running)?;
    architecture
        .entries()
        .into_iter()
        .map(
            |Entry {
                 name,
                 shape,
                 source,
             }| match source {
                Source::Parameter(index) => {
                    floats(name, shape, &view(&flat, &architecture.parameters[index])?)
                }
                Source::Running(range) => Ok(TensorData {
                    name,
                    kind: Kind::F32,
                    shape,
                    bytes: running[range]
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect(),
                }),
                Source::BatchesTracked => Ok(integer(name, batches_tracked)),
            },
        )
        .collect()
}

fn integer(name: String, value: i64) -> TensorData {
    TensorData {
        name,
        kind: Kind::I64,
        shape: Vec::new(),
        bytes: value.to_le_bytes().to_vec(),
    }
}

/// A copy of a tensor's values in the order of its shape, whatever its order in memory.
fn floats(name: String, shape: Vec<usize>, tensor: &Tensor) -> Result<TensorData, TorchError> {
    Ok(TensorData {
        name,
        kind: Kind::F32,
        shape,
        bytes: host_values(tensor)?
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    })
}

/// A tensor's values in the order of its shape, in host memory.
pub(super) fn host_values(tensor: &Tensor) -> Result<Vec<f32>, TorchError> {
    let tensor = tensor.f_contiguous()?;
    let mut values = vec![0f32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// Takes tensors out of a file by name, and in the end refuses what is left.
struct Reader<'a> {
    file: String,
    tensors: BTreeMap<&'a str, &'a TensorData>,
}

impl<'a> Reader<'a> {
    fn new(file: &str, list: &'a [TensorData]) -> Result<Self, TrainError> {
        let mut tensors = BTreeMap::new();
        for tensor in list {
            if tensors.insert(tensor.name.as_str(), tensor).is_some() {
                return Err(TrainError::State {
                    file: file.to_owned(),
                    mismatch: Mismatch::TwiceTensor(tensor.name.clone()),
                });
            }
        }
        Ok(Self {
            file: file.to_owned(),
            tensors,
        })
    }

    fn fault(&self, mismatch: Mismatch) -> TrainError {
        TrainError::State {
            file: self.file.clone(),
            mismatch,
        }
    }

    /// The bytes of the tensor called `name`, if it is what it must be.
    fn take(&mut self, name: &str, kind: Kind, shape: &[usize]) -> Result<&'a [u8], TrainError> {
        let Some(tensor) = self.tensors.remove(name) else {
            return Err(self.fault(Mismatch::NoTensor(name.to_owned())));
        };
        if tensor.kind != kind || tensor.shape != shape {
            return Err(self.fault(Mismatch::Shape {
                name: name.to_owned(),
                found: tensor.shape.clone(),
                found_kind: tensor.kind,
                expected: shape.to_vec(),
                expected_kind: kind,
            }));
        }
        let size = match kind {
            Kind::F32 => 4,
            Kind::I64 => 8,
        };
        let expected = size * shape.iter().product::<usize>();
        if tensor.bytes.len() != expected {
            return Err(self.fault(Mismatch::Bytes {
                name: name.to_owned(),
                found: tensor.bytes.len(),
                expected,
            }));
        }
        Ok(&tensor.bytes)
    }

    fn integer(&mut self, name: &str) -> Result<i64, TrainError> {
        let bytes = self.take(name, Kind::I64, &[])?;
        let mut value = [0; 8];
        value.copy_from_slice(bytes);
        Ok(i64::from_le_bytes(value))
    }

    fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TrainError> {
        let bytes = self.take(name, Kind::F32, shape)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|&value| f32::from_le_bytes(value))
            .collect())
    }

    /// Copies one parameter into its place of a flat vector.
    fn parameter(
        &mut self,
        name: &str,
        architecture: &Architecture,
        index: usize,
        flat: &Tensor,
    ) -> Result<(), TrainError> {
        let parameter = &architecture.parameters[index];
        let values = self.floats(name, &parameter.shape)?;
        let shape: Vec<i64> = parameter.shape.iter().map(|&side| side as i64).collect();
        let copy = || -> Result<(), TorchError> {
            let values = Tensor::f_from_slice(&values)?.f_view(&shape[..])?;
            Ok(view(flat, parameter)?.f_copy_(&values)?)
        };
        Ok(copy()?)
    }

    fn network(
        &mut self,
        architecture: &Architecture,
    ) -> Result<(Tensor, Tensor, i64), TrainError> {
        let flat = room(architecture)?;
        let mut running = vec![0.0; architecture.running];
        let mut tracked = None;
        for Entry {
            name,
            shape,
            source,
        } in architecture.entries()
        {
            match source {
                Source::Parameter(index) => self.parameter(&name, architecture, index, &flat)?,
                Source::Running(range) => {
                    running[range].copy_from_slice(&self.floats(&name, &shape)?);
                }
                Source::BatchesTracked => {
                    let found = self.integer(&name)?;
                    let expected = *tracked.get_or_insert(found);
                    if found != expected {
                        return Err(self.fault(Mismatch::Count {
                            name,
                            found,
                            expected,
                        }));
                    }
                }
            }
        }
        let running = Tensor::f_from_slice(&running).map_err(TorchError::from)?;
        Ok((flat, running, tracked.unwrap_or(0)))
    }

    fn moment(&mut self, architecture: &Architecture, kind: &str) -> Result<Tensor, TrainError> {
        let flat = room(architecture)?;
        for (index, parameter) in architecture.parameters.iter().enumerate() {
            let name = moment_name(architecture.player, kind, &parameter.name);
            self.parameter(&name, architecture, index, &flat)?;
        }
        Ok(flat)
    }

    fn finish(self) -> Result<(), TrainError> {
        match self.tensors.keys().next() {
            Some(name) => Err(self.fault(Mismatch::ExtraTensor((*name).to_owned()))),
            None => Ok(()),
        }
    }
}

fn room(architecture: &Architecture) -> Result<Tensor, TorchError> {
    Ok(Tensor::f_zeros(
        [architecture.len() as i64],
        (tch::Kind::Float, Device::Cpu),
    )?)
}
