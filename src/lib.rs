//! Ganglion trains DCGAN-class models on many devices, and the result of a job is a pure function
//! of its job file and its data.
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod coordinator;
pub mod data;
pub mod ids;
pub mod membership;
pub mod model;
#[cfg(feature = "torch")]
pub mod objective;
pub mod plan;
pub mod random;
pub mod sample;
pub mod session;
pub mod signals;
pub mod telemetry;
#[cfg(feature = "torch")]
pub mod torch;
#[cfg(feature = "torch")]
pub mod train;
#[cfg(feature = "torch")]
pub mod worker;

/// The wire: what `proto/` defines.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("ganglion.v1");

    /// The compiled descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/ganglion.v1.descriptors.bin"));
}
