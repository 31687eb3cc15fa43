//! `metrics.jsonl` while it grows, in pieces: whoever follows a run asks for what is new.

use super::records::Record;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Bytes that are read at a time, some thousand records.
const PIECE: u64 = 1 << 20;
/// A longer line is no record.
const LONGEST: usize = 1 << 16;

/// How far a file of records has been read.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    opened: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    inode: u64,
    /// Bytes that were read.
    read: u64,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
}

/// What is new.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// The file is another one, or shorter than it was: these records are its first.
    pub anew: bool,
    /// In the order in which they stand. Lines that are no records are passed over.
    pub records: Vec<Record>,
    /// There is more to be read at once.
    pub more: bool,
}

impl Tail {
    /// From the beginning of the file `path`, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, opened: None }
    }

    /// The next piece: nothing, if nothing is new. A resumed job puts a new file in the place of the
    /// old one; it is read from its beginning.
    ///
    /// # Errors
    /// [`io::Error`], if the file is there and can't be read.
    pub fn next_piece(&mut self) -> io::Result<Piece> {
        let mut piece = Piece::default();
        let found = match fs::metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                piece.anew = self.opened.take().is_some();
                return Ok(piece);
            }
            Err(error) => return Err(error),
        };
        if let Some(opened) = &self.opened
            && (opened.inode != found.ino() || opened.read > found.len())
        {
            self.opened = None;
            piece.anew = true;
        }
        let opened = match &mut self.opened {
            Some(opened) => opened,
            None => {
                let file = File::open(&self.path)?;
                let inode = file.metadata()?.ino();
                self.opened.insert(Opened {
                    file,
                    inode,
                    read: 0,
                    rest: Vec::new(),
                })
            }
        };
        let mut bytes = std::mem::take(&mut opened.rest);
        let before = bytes.len();
        (&opened.file).take(PIECE).read_to_end(&mut bytes)?;
        let read = (bytes.len() - before) as u64;
        opened.read += read;
        piece.more = read == PIECE;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n');
        let whole = whole.map_or(0, |newline| newline + 1);
        let lines = bytes[..whole].split(|&byte| byte == b'\n');
        let records = lines.filter_map(|line| serde_json::from_slice::<Record>(line).ok());
        piece.records.extend(records);
        bytes.drain(..whole);
        if bytes.len() > LONGEST {
            // Its end, once it comes, must not look like a record.
            bytes = vec![b'?'];
        }
        opened.rest = bytes;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Step;
    use crate::telemetry::records::{RecordLog, tests::record};
    use std::io::Write;

    fn steps(piece: &Piece) -> Vec<u64> {
        piece.records.iter().map(|record| record.step.0).collect()
    }

    #[test]
    fn each_record_is_read_once_however_the_file_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.next_piece().unwrap(), Piece::default(), "no file yet");
        let mut log = RecordLog::open(&path).unwrap();
        log.append(&[record(1), record(2)]).unwrap();
        let piece = tail.next_piece().unwrap();
        assert_eq!(piece.records, [record(1), record(2)]);
        assert!(!piece.anew && !piece.more);
        // Half a line is no record until the other half is there.
        let text = serde_json::to_string(&record(3)).unwrap() + "\n";
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&text.as_bytes()[..20]).unwrap();
        assert_eq!(tail.next_piece().unwrap(), Piece::default());
        file.write_all(&text.as_bytes()[20..]).unwrap();
        file.write_all(b"no record\n").unwrap();
        assert_eq!(tail.next_piece().unwrap().records, [record(3)]);
        assert_eq!(tail.next_piece().unwrap(), Piece::default());
    }

    #[test]
    fn a_file_that_was_replaced_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = RecordLog::open(&path).unwrap();
        log.append(&[record(1), record(2)]).unwrap();
        let mut tail = Tail::new(path.clone());
        assert_eq!(steps(&tail.next_piece().unwrap()), [1, 2]);
        // As a coordinator does that comes back.
        let mut log = RecordLog::open(&path).unwrap();
        log.append(&[record(3)]).unwrap();
        let piece = tail.next_piece().unwrap();
        assert!(piece.anew);
        assert_eq!(steps(&piece), [1, 2, 3]);
    }

    #[test]
    fn a_long_file_comes_in_pieces_and_a_long_line_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let records: Vec<_> = (1..=10_000).map(record).collect();
        let mut log = RecordLog::open(&path).unwrap();
        log.append(&records).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&vec![b'x'; 3 << 20]).unwrap();
        file.write_all(b"\n").unwrap();
        log.append(&[record(10_001)]).unwrap();
        let (mut tail, mut found, mut pieces) = (Tail::new(path), Vec::new(), 0);
        loop {
            let piece = tail.next_piece().unwrap();
            let room = tail.opened.as_ref().map_or(0, |opened| opened.rest.len());
            assert!(room <= LONGEST, "{room}");
            pieces += 1;
            found.extend(piece.records);
            if !piece.more {
                break;
            }
        }
        assert!(pieces > 4, "{pieces}");
        assert_eq!(found.len(), 10_001);
        assert_eq!(found.last().unwrap().step, Step(10_001));
    }

    #[test]
    fn a_figure_that_was_not_finite_is_not_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let broken = Record {
            loss_d: f64::INFINITY,
            ..record(1)
        };
        RecordLog::open(&path).unwrap().append(&[broken]).unwrap();
        let piece = Tail::new(path).next_piece().unwrap();
        assert!(piece.records[0].loss_d.is_nan());
        assert_eq!(piece.records[0].loss_g, broken.loss_g);
    }
}
