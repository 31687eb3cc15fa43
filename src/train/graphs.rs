//! Stretches as CUDA graphs.

use super::stretches::{Recorded, Recorder, Stretch, Work};
use super::{TrainError, Trainer};
use crate::torch::{Graph, GraphPool, Stream, TorchError, graphs_available};
use std::mem::ManuallyDrop;
use std::time::Duration;
use tch::Device;

impl Trainer {
    /// What records this trainer's stretches, if anything does. Says why, if nothing does that was
    /// asked for.
    pub(super) fn recorder(&self) -> Option<Box<dyn Recorder>> {
        let device = self.game.device;
        if device == Device::Cpu || !self.job.workers.cuda_graphs {
            return None;
        }
        let made = graphs_available()
            .and_then(|()| CudaGraphs::new(device).map_err(|error| error.to_string()));
        match made {
            Ok(graphs) => Some(Box::new(graphs)),
            Err(why) => {
                tracing::warn!("steps are done kernel by kernel: no CUDA graphs: {why}");
                None
            }
        }
    }
}

/// Records on a stream of its own, as CUDA demands; what it records may go to any.
#[derive(Debug)]
struct CudaGraphs {
    stream: Stream,
    /// Both sets of buffers' graphs share their intermediates' memory: they are never under way at
    /// the same time, and none keeps anything from one step to the next.
    pool: GraphPool,
}

impl CudaGraphs {
    fn new(device: Device) -> Result<Self, TorchError> {
        Ok(Self {
            stream: Stream::from_pool(device, false)?,
            pool: GraphPool::new(device)?,
        })
    }
}

impl Recorder for CudaGraphs {
    fn record(
        &mut self,
        mut work: Work,
        order: &[Stretch],
    ) -> Result<Box<dyn Recorded>, TrainError> {
        let mut graphs = Vec::with_capacity(order.len());
        for &stretch in order {
            // In the order in which they will be done: a later one may have the memory again that an
            // earlier one has let go.
            let graph = Graph::capture(&self.pool, self.stream, || work.run(stretch))?;
            graphs.push((stretch, graph));
        }
        Ok(Box::new(CudaGraph {
            device: self.stream.device(),
            graphs: ManuallyDrop::new(graphs),
            _work: work,
        }))
    }
}

/// The stretches of a step that starts from one set of buffers.
#[derive(Debug)]
struct CudaGraph {
    device: Device,
    graphs: ManuallyDrop<Vec<(Stretch, Graph)>>,
    /// Whose addresses the graphs know.
    _work: Work,
}

impl Recorded for CudaGraph {
    fn replay(&mut self, stretch: Stretch) -> Result<(), TrainError> {
        for (recorded, graph) in self.graphs.iter() {
            if *recorded == stretch {
                graph.replay()?;
            }
        }
        Ok(())
    }
}

/// How long a device may take to be done with graphs that nobody needs any more.
const GRACE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_millis(1);

impl Drop for CudaGraph {
    /// Their memory goes to others, so the device must be done with them. If it isn't in time, it
    /// hangs, and this process will end: they are left to it.
    fn drop(&mut self) {
        let idle = || Stream::current(self.device).and_then(Stream::is_idle);
        for _ in 0..GRACE.as_millis() / PATIENCE.as_millis() {
            match idle() {
                Ok(true) => {
                    drop(std::mem::take(&mut *self.graphs));
                    return;
                }
                Ok(false) => std::thread::sleep(PATIENCE),
                Err(_) => return,
            }
        }
        tracing::warn!("the GPU has not ended its work in {GRACE:?}; its graphs are left behind");
    }
}
