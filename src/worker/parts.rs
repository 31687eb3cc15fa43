//! Long lists of members come in parts, ahead of the assignment that they belong to.

use crate::proto::{CoordinatorMessage, coordinator_message::Kind};

/// The longest list that is put together, bytes: a hundred times ten thousand workers'.
const LONGEST: usize = 64 << 20;

/// Puts them together.
#[derive(Default)]
pub(super) struct Parts {
    generation: u64,
    list: Vec<u8>,
}

impl Parts {
    /// The message as it would be in one piece; none while a list is not complete.
    pub(super) fn join(&mut self, message: CoordinatorMessage) -> Option<CoordinatorMessage> {
        match message.kind {
            Some(Kind::MembersPart(part)) => {
                if part.generation != self.generation {
                    // Of a list that never came to its end there is nothing to keep.
                    self.list.clear();
                    self.generation = part.generation;
                }
                if self.list.len() + part.part.len() <= LONGEST {
                    self.list.extend_from_slice(&part.part);
                }
                None
            }
            Some(Kind::Assignment(mut assignment)) => {
                let mut list = std::mem::take(&mut self.list);
                if assignment.generation == self.generation && !list.is_empty() {
                    list.extend_from_slice(&assignment.members);
                    assignment.members = list.into();
                }
                Some(CoordinatorMessage {
                    kind: Some(Kind::Assignment(assignment)),
                })
            }
            kind => Some(CoordinatorMessage { kind }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Acknowledged, Assignment, MembersPart};

    fn part(generation: u64, part: &'static [u8]) -> CoordinatorMessage {
        let part = part.into();
        CoordinatorMessage {
            kind: Some(Kind::MembersPart(MembersPart { generation, part })),
        }
    }

    fn assignment(generation: u64, members: &'static [u8]) -> CoordinatorMessage {
        CoordinatorMessage {
            kind: Some(Kind::Assignment(Assignment {
                generation,
                members: members.into(),
                ..Assignment::default()
            })),
        }
    }

    fn members(message: Option<CoordinatorMessage>) -> Vec<u8> {
        match message.unwrap().kind {
            Some(Kind::Assignment(assignment)) => assignment.members.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_that_comes_in_parts_is_the_list() {
        let mut parts = Parts::default();
        assert_eq!(members(parts.join(assignment(1, b"short"))), b"short");
        assert_eq!(parts.join(part(2, b"a")), None);
        assert_eq!(parts.join(part(2, b"b")), None);
        let other = CoordinatorMessage {
            kind: Some(Kind::Acknowledged(Acknowledged {})),
        };
        assert_eq!(parts.join(other.clone()), Some(other));
        assert_eq!(members(parts.join(assignment(2, b"c"))), b"abc");
        assert_eq!(members(parts.join(assignment(3, b"d"))), b"d");
    }

    #[test]
    fn parts_of_another_generation_are_no_part_of_it() {
        let mut parts = Parts::default();
        assert_eq!(parts.join(part(2, b"old")), None);
        assert_eq!(parts.join(part(3, b"new ")), None);
        assert_eq!(members(parts.join(assignment(3, b"list"))), b"new list");
        assert_eq!(parts.join(part(4, b"lost")), None);
        assert_eq!(members(parts.join(assignment(5, b"whole"))), b"whole");
    }
}
