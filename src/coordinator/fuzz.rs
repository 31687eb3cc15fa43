//! Body for [`crate::fuzzing`]: what comes through the gRPC port once HTTP/2 and TLS have passed it.

use super::wire;
use crate::membership::Word;
use crate::proto;
use prost::Message;

/// The bytes are a worker's message.
pub(crate) fn message(bytes: &[u8]) {
    let Ok(message) = proto::WorkerMessage::decode(bytes) else {
        return;
    };
    if let Ok(heard) = wire::hear(message) {
        assert!(heard.records.len() <= wire::RECORDS);
        if let Word::Hello(facts, _) = heard.word {
            assert!(!facts.incarnation.is_empty() && !facts.collective.is_empty());
            assert!(facts.cores >= 1);
        }
    }
}
