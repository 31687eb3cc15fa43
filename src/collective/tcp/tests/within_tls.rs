//! What ranks do whose connections are within TLS: all that they do without.

use super::super::super::stream::Lock;
use super::*;
use crate::locks::Part;
use crate::locks::certs::{TestKeys, for_tests};
use std::sync::OnceLock;

/// One for all tests: making keys takes time.
fn place() -> &'static TestKeys {
    static PLACE: OnceLock<TestKeys> = OnceLock::new();
    PLACE.get_or_init(|| for_tests("mnist"))
}

fn door(keys: &TestKeys, part: Part) -> Listener {
    Listener::bind_locked("127.0.0.1:0", Some(Lock(keys.keys(part)))).unwrap()
}

fn form(ranges: &[Range<u32>], collective: Duration) -> Vec<Member> {
    let doors: Vec<_> = ranges.iter().map(|_| door(place(), Part::Worker)).collect();
    form_behind(&doors, ranges, collective)
}

conformance::suite!(form);

/// The secret alone opens no door: whoever lacks a worker's certificate of this job stays outside, and
/// costs the group nothing.
#[test]
fn strangers_stay_outside_and_the_group_forms() {
    let doors = [door(place(), Part::Worker), door(place(), Part::Worker)];
    let groups: Vec<_> = (0..2)
        .map(|rank| group(1, rank, &doors, &[0..1, 1..2]))
        .collect();
    let others = for_tests("mnist");
    let strangers = [
        ("without TLS", Listener::bind("127.0.0.1:0").unwrap()),
        ("of another CA", door(&others, Part::Worker)),
        ("no worker", door(place(), Part::Operator)),
    ];
    thread::scope(|scope| {
        let first = scope.spawn(|| connect(&doors[0], &groups[0], PATIENT).unwrap());
        for (who, stranger) in &strangers {
            let error = connect(stranger, &groups[1], Duration::from_millis(300));
            let error = error.err().unwrap();
            assert!(
                matches!(error, CollectiveError::Deadline { .. }),
                "{who}: {error}"
            );
        }
        let mut garbage = TcpStream::connect(doors[0].local_addr()).unwrap();
        garbage.write_all(&[0x16; 4096]).unwrap();
        let _silent = TcpStream::connect(doors[0].local_addr()).unwrap();
        assert!(!first.is_finished());
        let second = connect(&doors[1], &groups[1], PATIENT).unwrap();
        works(vec![first.join().unwrap(), second]);
    });
}

#[test]
fn a_certificate_that_is_exchanged_counts_for_the_next_generation() {
    let keys = for_tests("mnist");
    let doors = [door(&keys, Part::Worker), door(&keys, Part::Worker)];
    let formed = form_on(&doors, 1, &[0..1, 1..2]);
    let (new, old) = (for_tests("mnist"), keys.files(Part::Worker));
    let new = new.files(Part::Worker);
    for (from, to) in [
        (&new.ca, &old.ca),
        (&new.cert, &old.cert),
        (&new.key, &old.key),
    ] {
        crate::locks::certs::replace(from, to);
    }
    // What was made before lives on, and what is made now is made with the new keys.
    works(formed);
    works(form_on(&doors, 2, &[0..1, 1..2]));
}
