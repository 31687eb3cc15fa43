//! The state as named tensors, and back.
//!
//! `generator`, `discriminator` and `generator_ema` are state dicts of PyTorch's DCGAN example;
//! `optimizer` holds Adam's moments under `generator.exp_avg.<name>` and so on, and the step. `guard`
//! has the guard's numbers, once it has any. A job that can be rolled back has all but that three
//! times: the state's own, and those of two older states, as `anchor_generator`,
//! `candidate_generator` and so on.

use super::anchors::{Anchor, Anchors};
use super::state::{Average, PlayerState, State};
use super::{Mismatch, TrainError};
use crate::checkpoint::{Kind, Snapshot, TensorData};
use crate::config::Job;
use crate::guard::{self, Guard};
use crate::ids::Step;
use crate::model::architecture::{Entry, Source};
use crate::model::{Architecture, Player, view};
use crate::torch::TorchError;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

const OPTIMIZER: &str = "optimizer";
const AVERAGE: &str = "generator_ema";
const GUARD: &str = "guard";
/// What the files of both states to go back to begin with.
const ANCHORS: [&str; 2] = ["anchor_", "candidate_"];
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Copies the state to the host.
pub(super) fn save(
    state: &State,
    generator: &Architecture,
    discriminator: &Architecture,
) -> Result<Snapshot, TorchError> {
    let mut files = BTreeMap::new();
    let architectures = [generator, discriminator];
    let players = [&state.generator, &state.discriminator];
    let average = state.average.as_ref();
    save_networks(&mut files, "", state.step, architectures, players, average)?;
    if let Some(anchors) = &state.anchors {
        let steps = state.guard.anchors();
        for ((prefix, step), anchor) in ANCHORS.into_iter().zip(steps).zip(anchors.both()) {
            let players = [&anchor.generator, &anchor.discriminator];
            let average = anchor.average.as_ref();
            save_networks(&mut files, prefix, step, architectures, players, average)?;
        }
    }
    // A guard that has had nothing to do leaves no trace.
    if state.guard != Guard::default() {
        let words = guard::NAMES.into_iter().zip(state.guard.words());
        let words = words.map(|(name, word)| integer(name.to_owned(), word.cast_signed()));
        files.insert(GUARD.to_owned(), words.collect());
    }
    Ok(Snapshot {
        step: state.step,
        files,
    })
}

/// Copies one state's networks to files whose names begin with `prefix`.
fn save_networks(
    files: &mut BTreeMap<String, Vec<TensorData>>,
    prefix: &str,
    step: Step,
    architectures: [&Architecture; 2],
    players: [&PlayerState; 2],
    average: Option<&Average>,
) -> Result<(), TorchError> {
    let mut moments = Vec::new();
    for (architecture, player) in architectures.into_iter().zip(players) {
        files.insert(
            format!("{prefix}{}", architecture.player),
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
    moments.push(integer("step".to_owned(), step.0 as i64));
    files.insert(format!("{prefix}{OPTIMIZER}"), moments);
    if let Some(average) = average {
        let [generator, _] = architectures;
        files.insert(
            format!("{prefix}{AVERAGE}"),
            state_dict(
                generator,
                &average.parameters,
                &average.running,
                average.batches_tracked,
            )?,
        );
    }
    Ok(())
}

/// The state that `snapshot` holds. It must have what the job keeps, and nothing else: an average,
/// states to roll back to.
pub(super) fn load(
    snapshot: &Snapshot,
    generator: &Architecture,
    discriminator: &Architecture,
    job: &Job,
    device: Device,
) -> Result<State, TrainError> {
    let average = job.train.ema_decay > 0.0;
    let prefixes: &[&str] = match job.guard.rolls_back() {
        true => &["", ANCHORS[0], ANCHORS[1]],
        false => &[""],
    };
    for name in snapshot.files.keys() {
        let players = [generator, discriminator].map(|network| network.player.to_string());
        let known = |prefix: &&str| {
            name.strip_prefix(*prefix).is_some_and(|rest| {
                players.iter().any(|player| player == rest)
                    || rest == OPTIMIZER
                    || (average && rest == AVERAGE)
            })
        };
        if name != GUARD && !prefixes.iter().any(known) {
            return Err(fault(name, Mismatch::ExtraFile));
        }
    }
    let guard = match snapshot.files.get(GUARD) {
        Some(tensors) => Reader::new(GUARD, tensors)?.guard()?,
        None => Guard::default(),
    };
    let networks = |prefix: &str, step: Step| {
        let reader = |name: &str| {
            let name = format!("{prefix}{name}");
            match snapshot.files.get(&name) {
                Some(tensors) => Reader::new(&name, tensors),
                None => Err(fault(&name, Mismatch::NoFile)),
            }
        };
        load_networks(reader, step, [generator, discriminator], average, device)
    };
    let own = networks("", snapshot.step)?;
    let anchors = job
        .guard
        .rolls_back()
        .then(|| -> Result<_, TrainError> {
            let [anchor, candidate] = guard.anchors();
            Ok(Box::new(Anchors {
                anchor: networks(ANCHORS[0], anchor)?,
                candidate: networks(ANCHORS[1], candidate)?,
            }))
        })
        .transpose()?;
    Ok(State {
        step: Step(snapshot.step.0),
        generator: own.generator,
        discriminator: own.discriminator,
        average: own.average,
        guard,
        anchors,
    })
}

/// One state's networks, which must be those of `step`.
fn load_networks<'a>(
    reader: impl Fn(&str) -> Result<Reader<'a>, TrainError>,
    step: Step,
    [generator, discriminator]: [&Architecture; 2],
    average: bool,
    device: Device,
) -> Result<Anchor, TrainError> {
    let mut optimizer = reader(OPTIMIZER)?;
    let mut player = |architecture: &Architecture| -> Result<PlayerState, TrainError> {
        let mut reader = reader(&architecture.player.to_string())?;
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
    let found = optimizer.integer("step")?;
    if found != step.0 as i64 {
        return Err(optimizer.fault(Mismatch::Count {
            name: "step".to_owned(),
            found,
            expected: step.0 as i64,
        }));
    }
    optimizer.finish()?;
    let average = average
        .then(|| -> Result<Average, TrainError> {
            let mut reader = reader(AVERAGE)?;
            let (parameters, running, batches_tracked) = reader.network(generator)?;
            reader.finish()?;
            Ok(Average {
                parameters: to_device(&parameters, device)?,
                running: to_device(&running, device)?,
                batches_tracked,
            })
        })
        .transpose()?;
    Ok(Anchor {
        generator: generator_state,
        discriminator: discriminator_state,
        average,
    })
}

fn fault(file: &str, mismatch: Mismatch) -> TrainError {
    TrainError::State {
        file: file.to_owned(),
        mismatch,
    }
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

    /// All of the guard's numbers.
    fn guard(mut self) -> Result<Guard, TrainError> {
        let mut words = [0; guard::WORDS];
        for (word, name) in words.iter_mut().zip(guard::NAMES) {
            *word = self.integer(name)?.cast_unsigned();
        }
        let guard = Guard::from_words(words)
            .map_err(|name| self.fault(Mismatch::Value(name.to_owned())))?;
        self.finish()?;
        Ok(guard)
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
