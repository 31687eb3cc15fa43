//! How long the parts of a step take on a device, without waiting for it.

use crate::torch::{Event, Stream, TorchError};
use std::time::Duration;
use tch::Device;

/// What the device does between two marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It computes, and waits for nobody.
    Compute,
    /// It waits for a reduction that nothing hides.
    Reduce,
    /// It waits for the host, or does what another step is charged for.
    Other,
}

/// Marks in the calling thread's current stream. They can be read when the device is past the last.
#[derive(Debug)]
pub(super) struct Stopwatch {
    device: Device,
    /// Those of earlier steps are used again.
    marks: Vec<Event>,
    /// What lies before each mark that is set.
    parts: Vec<Part>,
}

impl Stopwatch {
    pub(super) fn new(device: Device) -> Self {
        Self {
            device,
            marks: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Begins a step.
    pub(super) fn start(&mut self) -> Result<(), TorchError> {
        self.parts.clear();
        self.mark(Part::Other)
    }

    /// Ends a part.
    pub(super) fn mark(&mut self, part: Part) -> Result<(), TorchError> {
        let index = self.parts.len();
        if index == self.marks.len() {
            self.marks.push(Event::new(self.device, true)?);
        }
        self.marks[index].record(Stream::current(self.device)?)?;
        self.parts.push(part);
        Ok(())
    }

    /// The time that went to such parts.
    pub(super) fn read(&self, part: Part) -> Result<Duration, TorchError> {
        let mut milliseconds = 0.0;
        for (index, found) in self.parts.iter().enumerate().skip(1) {
            if *found == part {
                milliseconds += self.marks[index - 1].elapsed_ms(&self.marks[index])?;
            }
        }
        Ok(Duration::from_secs_f64(milliseconds.max(0.0) / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_own_time() {
        let mut watch = Stopwatch::new(Device::Cpu);
        for _ in 0..2 {
            watch.start().unwrap();
            watch.mark(Part::Compute).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            watch.mark(Part::Reduce).unwrap();
            watch.mark(Part::Compute).unwrap();
        }
        assert!(watch.read(Part::Reduce).unwrap() >= Duration::from_millis(20));
        assert!(watch.read(Part::Compute).unwrap() < Duration::from_millis(20));
        assert_eq!(watch.read(Part::Other).unwrap(), Duration::ZERO);
    }
}
