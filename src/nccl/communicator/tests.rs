use super::*;
use crate::nccl::stand_in;

const PATIENT: Duration = Duration::from_secs(30);

/// Gives each of so many ranks a communicator and a thread.
fn on_ranks(world_size: u32, work: impl Fn(&Communicator, u32) + Sync) {
    let library = stand_in();
    let id = library.unique_id().unwrap();
    thread::scope(|scope| {
        for rank in 0..world_size {
            let (library, id, work) = (&library, &id, &work);
            scope.spawn(move || {
                let begun = Communicator::init(library, id, rank, world_size, Device::Cpu, PATIENT);
                let communicator = begun.unwrap();
                work(&communicator, rank);
                communicator.close(PATIENT).unwrap();
                assert!(matches!(communicator.launched(), Err(NcclError::Over)));
            });
        }
    });
}

fn vector(length: i64, value: f64) -> Tensor {
    Tensor::full([length], value, (Kind::Float, Device::Cpu))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).unwrap()
}

fn finished(communicator: &Communicator) {
    let start = now();
    while !(communicator.launched().unwrap() && communicator.release().unwrap()) {
        assert!(start.elapsed() < PATIENT);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_call_does_what_it_says() {
    on_ranks(3, |communicator, rank| {
        let own = vector(4, f64::from(rank) + 1.0);
        let (sum, all) = (vector(4, 0.0), vector(12, 0.0));
        let root = vector(2, f64::from(rank));
        let from_previous = vector(4, 0.0);
        let mut group = communicator.group();
        group.all_reduce(&own, &sum).unwrap();
        group.all_gather(&own, &all).unwrap();
        group.broadcast(&root, 2).unwrap();
        group.launch().unwrap();
        finished(communicator);
        // Both directions at once: alone either would wait for the other.
        let mut group = communicator.group();
        group.send(&own, (rank + 1) % 3).unwrap();
        group.receive(&from_previous, (rank + 2) % 3).unwrap();
        group.launch().unwrap();
        finished(communicator);
        assert_eq!(values(&sum), [6.0; 4]);
        assert_eq!(
            values(&all),
            [1., 1., 1., 1., 2., 2., 2., 2., 3., 3., 3., 3.]
        );
        assert_eq!(values(&root), [2.0; 2]);
        assert_eq!(values(&from_previous), [(rank + 2) as f32 % 3.0 + 1.0; 4]);
    });
}

#[test]
fn what_does_not_fit_never_reaches_nccl() {
    on_ranks(2, |communicator, _| {
        let (four, five) = (vector(4, 0.0), vector(5, 0.0));
        let square = vector(16, 0.0).view([4, 4]);
        let double = four.to_kind(Kind::Double);
        let mut group = communicator.group();
        for tensor in [&square, &square.select(1, 0), &double] {
            let error = group.send(tensor, 0).err().unwrap();
            assert!(matches!(error, NcclError::Tensor { .. }), "{error}");
        }
        let error = group.all_reduce(&four, &five).err().unwrap();
        assert!(matches!(error, NcclError::Length { .. }), "{error}");
        let error = group.all_gather(&four, &five).err().unwrap();
        assert!(
            matches!(error, NcclError::Length { expected: 8, .. }),
            "{error}"
        );
        let error = group.receive(&four, 2).err().unwrap();
        assert!(matches!(error, NcclError::Rank { rank: 2, .. }), "{error}");
        // Given up in the middle, and nothing was begun.
        group.send(&four, 1).unwrap();
        drop(group);
        assert!(communicator.launched().unwrap() && communicator.is_idle().unwrap());
        communicator.group().launch().unwrap();
    });
}

#[test]
fn initialisation_ends_at_its_deadline() {
    let library = stand_in();
    let id = library.unique_id().unwrap();
    let brief = Duration::from_millis(100);
    let alone = Communicator::init(&library, &id, 0, 2, Device::Cpu, brief);
    let error = alone.unwrap_err();
    assert!(matches!(error, NcclError::Deadline { .. }), "{error}");
}

#[test]
fn an_abort_ends_what_hangs_and_is_bounded() {
    for (words, ends) in [("vanish", true), ("vanish,abort-hangs", false)] {
        on_ranks(1, |communicator, _| {
            assert!(communicator.arm(words));
            assert!(!communicator.arm("no-such-fault"));
            let mut group = communicator.group();
            let both = [vector(4, 1.0), vector(4, 0.0)];
            group.all_reduce(&both[0], &both[1]).unwrap();
            group.launch().unwrap();
            thread::sleep(Duration::from_millis(20));
            assert!(!communicator.is_idle().unwrap());
            let start = now();
            let bound = if ends {
                PATIENT
            } else {
                Duration::from_millis(200)
            };
            match communicator.abort(bound) {
                Ok(()) => assert!(ends && communicator.is_idle().unwrap()),
                Err(NcclError::Stuck { .. }) => assert!(!ends),
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENT / 2);
            // It is over, once and for all.
            communicator.abort(PATIENT).unwrap();
            let mut group = communicator.group();
            group.all_reduce(&both[0], &both[1]).unwrap();
            assert!(matches!(group.launch(), Err(NcclError::Over)));
        });
    }
}
