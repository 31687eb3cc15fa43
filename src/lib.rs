//! Ganglion trains DCGAN-class models on many devices, and the result of a job is a pure function
//! of its job file and its data: which machines computed it, how many, and what failed on the way
//! leaves no trace in a single bit of the checkpoint.
//!
//! # The map, in the order in which data flows
//!
//! ```text
//! job file → gan-coord ──Assignment──▶ gan-worker → batches → step → reduce → State(t+1)
//!                ▲                         │                            │
//!                └──────── Progress ───────┘          checkpoint, samples, metrics
//! ```
//!
//! | room | owns |
//! |---|---|
//! | [`config`] | the job file: what a job is |
//! | [`guard`] | PURE: what becomes of a step whose figures are bad |
//! | [`plan`] | PURE: who reads which samples when |
//! | [`data`] | sources, samples that are made, packed shards, the loader |
//! | [`membership`] | PURE: the coordinator's machine: who takes part, in which generation |
//! | [`coordinator`] | drives `membership`: gRPC service, ledger, status, the page, command line |
//! | [`session`] | PURE: a worker's machine: what it does with what it hears; who holds the newest state |
//! | `worker` | drives `session`: gRPC client, training thread, command line |
//! | [`model`] | generator and discriminator: layers, names, shapes; forward passes |
//! | `objective` | the games: what the two networks minimise |
//! | `regularise` | what is added to a game: penalties on D's slope, noise, augmentation, packing |
//! | `train` | one step of all hosted replicas, in host memory or on a device; the state and how it changes |
//! | [`collective`] | the exact all-reduce: tree (PURE), TCP, memory of one host, NCCL, in process; in-band flags |
//! | `nccl` | the binding to NCCL: a table of its functions, loaded at run time, and a safe communicator |
//! | `torch` | what tch lacks: a C++ shim and its safe face; streams; CUDA graphs, a plug-in |
//! | [`checkpoint`] | the state on disk: whole or invisible, verified when read |
//! | [`certificate`] | `result.json`: what a complete job has computed, for others to compute again |
//! | [`sample`] | pictures: grids, points, sheets with captions, films; the geometry of latents |
//! | [`export`] | a generator as safetensors, TorchScript, ONNX |
//! | `evaluate` | what a generator is worth: FID, KID, precision, recall, density, coverage, modes |
//! | `density` | section 3.4 of the tutorial: NCE, maximum likelihood and GAN on densities in closed form |
//! | `figures` | the tutorial's figures, from runs |
//! | [`locks`] | who may talk to whom: certificates for a part in a job, tokens, the coordinator's door |
//! | [`telemetry`] | logs, metrics, records, TensorBoard's event files, the progress bar |
//! | [`random`] | PURE: a key for every random draw |
//! | [`command`], [`signals`], [`ids`] | what both command lines share; SIGTERM and the like; the numbers that name things |
//! | [`proto`] | the wire, as `proto/` defines it |
//! | `fuzzing` | tests: what must hold of all that reads bytes of strangers |
//! | `faults`, `simulation` | tests: places to die at; the two machines in seeded schedules on a virtual clock |
//!
//! Arrows point one way: binaries → `coordinator`, `worker` → `train` → `collective`, `model`,
//! `objective`, `regularise`, `data`, `checkpoint` → `plan`, `config`; and `collective` → `nccl` → `torch`.
//! `coordinator`, `worker` and `collective` use `locks`, which uses none of them.
//! `coordinator` and `worker` never use each other. PURE rooms use no tokio, tonic or tch and read no
//! clock: time comes in as an argument, decisions go out as values. `unsafe` lives in `torch` and
//! `nccl`, but for two memory maps: one in `data`, one in `collective`.
//!
//! # Features
//!
//! `torch` (default): everything that touches a tensor. Without it `gan-coord` still builds.

pub mod certificate;
pub mod checkpoint;
pub mod collective;
pub mod command;
pub mod config;
pub mod coordinator;
pub mod data;
#[cfg(feature = "torch")]
pub mod density;
#[cfg(feature = "torch")]
pub mod evaluate;
pub mod export;
mod faults;
#[cfg(feature = "torch")]
pub mod figures;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod guard;
pub mod ids;
pub mod locks;
pub mod membership;
pub mod model;
#[cfg(feature = "torch")]
pub mod nccl;
#[cfg(feature = "torch")]
pub mod objective;
pub mod plan;
pub mod proto;
pub mod random;
#[cfg(feature = "torch")]
pub mod regularise;
pub mod sample;
pub mod session;
pub mod signals;
#[cfg(test)]
mod simulation;
pub mod telemetry;
#[cfg(feature = "torch")]
pub mod torch;
#[cfg(feature = "torch")]
pub mod train;
#[cfg(feature = "torch")]
pub mod worker;
