//! A queue of frames in memory that two processes share: one writes, the other reads.
//!
//! ```text
//! published | consumed | reader waits | writer waits | slot | slot | … | slot
//! ```
//!
//! Each side counts for itself what it has published or consumed, and reads only the other's count.
//! One that can't be is an error: nothing that the other process writes here is trusted further than
//! a frame from a socket would be. This room knows nothing of waiting; it says whom to wake.

use super::memory::Memory;
use crate::collective::exact::CHUNK;
use crate::collective::wire::{HEADER, Label, Mismatch};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words from one counter to the next: two cache lines, which processors fetch together.
const APART: usize = 16;

/// Where the counters are.
const PUBLISHED: usize = 0;
const CONSUMED: usize = APART;
const READER_WAITS: usize = 2 * APART;
const WRITER_WAITS: usize = 3 * APART;
const SLOTS: usize = 4 * APART;

/// Words of a header, filled up to a cache line.
const HEAD: usize = (HEADER / 8).next_multiple_of(8);

/// Words of a slot.
const SLOT: usize = HEAD + CHUNK / 2;

/// Words of a ring of so many slots.
pub(super) const fn words(slots: usize) -> usize {
    SLOTS + slots * SLOT
}

/// The other process has written what it can't have meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memory shared with it is corrupt: a queue of {slots} frames counts {published} frames \
     published and {consumed} consumed"
)]
pub(super) struct Corrupt {
    published: u64,
    consumed: u64,
    slots: usize,
}

/// Where a ring lies.
#[derive(Clone, Debug)]
struct Place {
    memory: Arc<Memory>,
    words: Range<usize>,
    slots: usize,
}

impl Place {
    fn new(memory: Arc<Memory>, start: usize, slots: usize) -> Self {
        let words = start..start + words(slots);
        Self {
            memory,
            words,
            slots,
        }
    }

    fn words(&self) -> &[AtomicU64] {
        &self.memory.words()[self.words.clone()]
    }

    fn slot(&self, count: u64) -> &[AtomicU64] {
        let index = (count % self.slots as u64) as usize;
        &self.words()[SLOTS + index * SLOT..SLOTS + (index + 1) * SLOT]
    }

    /// Frames that are published and not consumed.
    fn under_way(&self, published: u64, consumed: u64) -> Result<u64, Corrupt> {
        match published.checked_sub(consumed) {
            Some(under_way) if under_way <= self.slots as u64 => Ok(under_way),
            _ => Err(Corrupt {
                published,
                consumed,
                slots: self.slots,
            }),
        }
    }

    /// Says that this side waits. What the other side did before it could know is to be looked for
    /// after this.
    fn wait(&self, flag: usize) {
        self.words()[flag].store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Makes a count public; says whether the other side waits, who must then be woken.
    fn advance(&self, counter: usize, count: u64, flag: usize) -> bool {
        let words = self.words();
        words[counter].store(count, Ordering::Release);
        // Either we see that it waits, or it sees our count: see `wait`.
        fence(Ordering::SeqCst);
        words[flag].load(Ordering::Relaxed) != 0 && words[flag].swap(0, Ordering::Relaxed) != 0
    }
}

/// The end that writes.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    published: u64,
}

/// The end that reads.
#[derive(Debug)]
pub(super) struct Reader {
    place: Place,
    consumed: u64,
}

impl Writer {
    /// Over memory that was zeros, from `start` on.
    pub(super) fn new(memory: Arc<Memory>, start: usize, slots: usize) -> Self {
        Self {
            place: Place::new(memory, start, slots),
            published: 0,
        }
    }

    pub(super) fn has_room(&self) -> Result<bool, Corrupt> {
        let consumed = self.place.words()[CONSUMED].load(Ordering::Acquire);
        let under_way = self.place.under_way(self.published, consumed)?;
        Ok(under_way < self.place.slots as u64)
    }

    /// Writes a frame, for which there must be room. Says whether the reader is to be woken.
    ///
    /// # Panics
    /// If it holds more than [`CHUNK`] numbers.
    pub(super) fn write(&mut self, label: Label, values: &[f32]) -> bool {
        assert!(values.len() <= CHUNK, "a frame holds one chunk");
        let slot = self.place.slot(self.published);
        let header = label.header(values.len());
        for (word, bytes) in slot.iter().zip(header.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        put(&slot[HEAD..], values);
        self.published += 1;
        self.place.advance(PUBLISHED, self.published, READER_WAITS)
    }

    /// Says that the writer waits for room.
    pub(super) fn wait(&self) {
        self.place.wait(WRITER_WAITS);
    }
}

impl Reader {
    /// Over memory that was zeros, from `start` on.
    pub(super) fn new(memory: Arc<Memory>, start: usize, slots: usize) -> Self {
        Self {
            place: Place::new(memory, start, slots),
            consumed: 0,
        }
    }

    pub(super) fn has_frame(&self) -> Result<bool, Corrupt> {
        let published = self.place.words()[PUBLISHED].load(Ordering::Acquire);
        Ok(self.place.under_way(published, self.consumed)? > 0)
    }

    /// Reads the next frame, which must be there, and must be `label` and as long as `into`. Says
    /// whether the writer is to be woken.
    pub(super) fn read(&mut self, label: Label, into: &mut [f32]) -> Result<bool, Mismatch> {
        let slot = self.place.slot(self.consumed);
        let mut header = [0; HEADER];
        for (bytes, word) in header.as_chunks_mut().0.iter_mut().zip(slot) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        label.check(into.len(), &header)?;
        get(&slot[HEAD..], into);
        self.consumed += 1;
        Ok(self.place.advance(CONSUMED, self.consumed, WRITER_WAITS))
    }

    /// Says that the reader waits for a frame.
    pub(super) fn wait(&self) {
        self.place.wait(READER_WAITS);
    }
}

/// Two numbers a word: 30 GB/s from cache to cache, which no memory keeps up with.
fn put(words: &[AtomicU64], values: &[f32]) {
    let word = |low: f32, high: f32| u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32;
    let (pairs, rest) = values.as_chunks::<2>();
    for (place, [low, high]) in words.iter().zip(pairs) {
        place.store(word(*low, *high), Ordering::Relaxed);
    }
    if let [last] = rest {
        words[pairs.len()].store(word(*last, 0.0), Ordering::Relaxed);
    }
}

fn get(words: &[AtomicU64], values: &mut [f32]) {
    let numbers = |word: &AtomicU64| {
        let word = word.load(Ordering::Relaxed);
        [word as u32, (word >> 32) as u32].map(f32::from_bits)
    };
    let (pairs, rest) = values.as_chunks_mut::<2>();
    for (pair, word) in pairs.iter_mut().zip(words) {
        *pair = numbers(word);
    }
    if let [last] = rest {
        [*last, _] = numbers(&words[pairs.len()]);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::super::memory;
    use super::*;
    use crate::collective::wire::Kind;
    use crate::ids::Generation;

    const LABEL: Label = Label {
        generation: Generation(1),
        sequence: 2,
        kind: Kind::Sum,
        node: 3,
        chunk: 4,
        elements: 5,
    };

    fn ring(slots: usize) -> (Writer, Reader) {
        let memory = Arc::new(memory::create(8 + words(slots)).unwrap().memory);
        let reader = Reader::new(Arc::clone(&memory), 8, slots);
        (Writer::new(memory, 8, slots), reader)
    }

    #[test]
    fn frames_come_in_order_bit_for_bit_and_as_many_as_fit() {
        let (mut writer, mut reader) = ring(3);
        let frame = |number: usize| -> Vec<f32> {
            let value = |i| f32::from_bits((number * 1_000_003 + i * 0x9e37_79b9) as u32);
            (0..[0, 1, 2, 7, CHUNK][number % 5]).map(value).collect()
        };
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
        let (mut written, mut read) = (0, 0);
        while read < 40 {
            while writer.has_room().unwrap() {
                assert!(!writer.write(LABEL, &frame(written)), "nobody waits");
                written += 1;
            }
            assert_eq!(written, read + 3);
            for _ in 0..=read % 3 {
                let mut into = vec![0.0; frame(read).len()];
                assert!(reader.has_frame().unwrap());
                assert_eq!(reader.read(LABEL, &mut into), Ok(false));
                assert_eq!(bits(&into), bits(&frame(read)));
                read += 1;
            }
        }
    }

    #[test]
    fn who_waits_is_woken_once() {
        let (mut writer, mut reader) = ring(1);
        reader.wait();
        assert!(!reader.has_frame().unwrap());
        assert!(writer.write(LABEL, &[1.0]));
        writer.wait();
        assert!(!writer.has_room().unwrap());
        let mut into = [0.0];
        assert_eq!(reader.read(LABEL, &mut into), Ok(true));
        assert!(!writer.write(LABEL, &[1.0]));
    }

    #[test]
    fn a_frame_out_of_place_is_named_and_stays() {
        let (mut writer, mut reader) = ring(2);
        writer.write(LABEL, &[1.0, 2.0]);
        let mismatch = reader.read(LABEL, &mut [0.0]).unwrap_err();
        assert_eq!((mismatch.field, mismatch.found), ("length", 8));
        let mut into = [0.0; 2];
        assert!(reader.read(LABEL, &mut into).is_ok());
        assert_eq!(into, [1.0, 2.0]);
    }

    #[test]
    fn counts_that_can_not_be_are_an_error() {
        let (mut writer, reader) = ring(4);
        let counters = |count: u64, which: usize| {
            writer.place.words()[which].store(count, Ordering::Relaxed);
        };
        for count in [5, u64::MAX] {
            counters(count, PUBLISHED);
            let error = reader.has_frame().unwrap_err();
            assert!(error.to_string().contains("corrupt"), "{error}");
        }
        counters(1, CONSUMED);
        assert!(writer.has_room().is_err(), "more consumed than published");
        counters(0, CONSUMED);
        writer.write(LABEL, &[]);
        assert!(writer.has_room().unwrap());
    }
}
