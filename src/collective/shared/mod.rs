//! Links between two workers of one host: frames pass through memory that both have mapped.
//!
//! The connection between the two stays, and does what it did: it ends when a peer dies or gives up,
//! and that ends every wait here. Who waits for long sleeps on it, and is woken by a byte; as long as
//! both keep up with each other, no byte is sent and nobody asks the system for anything.
//!
//! `memory` is the mapping, `ring` a queue of frames in it, `offering` how two workers find out that
//! they can.

mod memory;
mod offering;
mod ring;

pub(super) use offering::{Neighbour, host, share};

use super::limit::Limit;
use super::socket;
use super::stream::Stream;
use super::wire::{Label, Mismatch};
use ring::{Corrupt, Reader, Writer};
use std::io::{self, Write};
use std::time::Duration;

/// How long a wait stays awake at most: about a chunk's worth of work of a peer that keeps up. Longer
/// waits leave the core to whoever has something to compute.
const AWAKE: Duration = Duration::from_micros(20);

/// By how much patience grows, at least.
const GROWTH: Duration = Duration::from_micros(1);

/// The link with one neighbour.
#[derive(Debug)]
pub(super) struct Shared {
    writer: Writer,
    reader: Reader,
    /// How long the next wait for a frame stays awake: less and less with a peer that doesn't keep
    /// up, for then it is the cores that are short.
    patience: Duration,
}

/// Why a frame did not come.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection ended, or it did not come in time.
    Io(io::Error),
    /// Another one came.
    Mismatch(Mismatch),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::new(io::ErrorKind::InvalidData, corrupt)
    }
}

impl Shared {
    /// Sends a frame; waits only for a peer that has left too many unread.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        limit: &Limit,
        label: Label,
        values: &[f32],
    ) -> io::Result<()> {
        let writer = &self.writer;
        let has_room = || writer.has_room();
        let mut patience = Duration::ZERO;
        wait(stream, limit, &mut patience, has_room, || writer.wait())?;
        if self.writer.write(label, values) {
            wake(stream);
        }
        Ok(())
    }

    /// Receives the next frame, which must be `label`.
    pub(super) fn receive(
        &mut self,
        stream: &Stream,
        limit: &Limit,
        label: Label,
        into: &mut [f32],
    ) -> Result<(), Trouble> {
        let (reader, patience) = (&self.reader, &mut self.patience);
        let has_frame = || reader.has_frame();
        wait(stream, limit, patience, has_frame, || reader.wait())?;
        if self.reader.read(label, into).map_err(Trouble::Mismatch)? {
            wake(stream);
        }
        Ok(())
    }
}

/// Waits until `ready`; `announce` has the peer send a byte when it is.
fn wait(
    stream: &Stream,
    limit: &Limit,
    patience: &mut Duration,
    ready: impl Fn() -> Result<bool, Corrupt>,
    announce: impl Fn(),
) -> io::Result<()> {
    let grown = (*patience * 2 + GROWTH).min(AWAKE);
    let awake = Limit::start(*patience);
    loop {
        if ready()? {
            *patience = grown;
            return Ok(());
        }
        if awake.left().is_none() {
            break;
        }
        std::hint::spin_loop();
    }
    *patience /= 4;
    loop {
        announce();
        if ready()? {
            return Ok(());
        }
        // Bytes that were meant for earlier waits are taken with it, or wake this one in vain.
        let slept = socket::fill(stream, &mut [0; 64], 0, 1, limit);
        if ready()? {
            // What was sent is good, even if its sender is gone by now.
            return Ok(());
        }
        slept?;
    }
}

/// Ends the peer's wait. Should it be gone, whoever waits for it next will learn of that.
fn wake(mut stream: &Stream) {
    let _ = stream.write_all(&[1]);
}
