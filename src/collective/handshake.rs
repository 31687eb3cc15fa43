//! How two workers prove to each other that they belong to one generation.
//!
//! ```text
//! caller   → hello:  generation, from, to, nonce
//! listener → answer: verdict, nonce, proof
//! caller   → proof
//! listener → "in"
//! ```
//!
//! A proof is HMAC-SHA256, keyed with the generation's secret, over the prover's role, the hello
//! with the caller's nonce, the listener's nonce, and who hosts which replicas. The secret itself
//! is never sent; a proof can't be used in the other direction, for another pair of ranks, in
//! another generation or a second time. All of this, and what follows, is within TLS if the worker has
//! keys. If it has none, what follows is neither encrypted nor signed: the network between workers is
//! trusted not to change a connection that was made.

use super::error::Refusal;
use super::group::Group;
use super::limit::Limit;
use super::socket;
use super::stream::Stream;
use super::wire::{Answer, Hello, Nonce, Proof, Verdict};
use crate::ids::{Generation, Rank};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// The byte that ends a handshake.
const IN: [u8; 1] = [0x06];

/// What a member of a generation knows.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) generation: Generation,
    pub(super) rank: Rank,
    pub(super) world_size: u32,
    secret: [u8; 32],
    /// Digest of who hosts which replicas.
    members: [u8; 32],
}

#[derive(Clone, Copy)]
enum Role {
    Caller,
    Listener,
}

impl Credentials {
    pub(super) fn of(group: &Group) -> Self {
        let mut members = Sha256::new();
        members.update(group.replicas.to_le_bytes());
        for peer in &group.peers {
            members.update(peer.replicas.start.to_le_bytes());
            members.update(peer.replicas.end.to_le_bytes());
        }
        Self {
            generation: group.generation,
            rank: group.rank,
            world_size: group.peers.len() as u32,
            secret: group.secret,
            members: members.finalize().into(),
        }
    }

    fn mac(&self, role: Role, hello: &Hello, nonce: &Nonce) -> io::Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret)
            .map_err(|error| io::Error::other(error.to_string()))?;
        mac.update(match role {
            Role::Caller => b"ganglion collective caller\0\0",
            Role::Listener => b"ganglion collective listener",
        });
        mac.update(&hello.encode());
        mac.update(nonce);
        mac.update(&self.members);
        Ok(mac)
    }

    fn prove(&self, role: Role, hello: &Hello, nonce: &Nonce) -> io::Result<Proof> {
        Ok(self.mac(role, hello, nonce)?.finalize().into_bytes().into())
    }

    /// In constant time.
    fn verify(&self, role: Role, hello: &Hello, nonce: &Nonce, proof: &Proof) -> io::Result<bool> {
        Ok(self.mac(role, hello, nonce)?.verify_slice(proof).is_ok())
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// One of the two won't have the other.
    #[error("{0}")]
    Refused(Refusal),
    /// It answered nothing, or something else.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Why somebody who called was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stranger {
    #[error("it does not speak this protocol")]
    Garbage,
    #[error("it calls itself rank {} of generation {}, but {refusal}", hello.from, hello.generation)]
    Refused { hello: Hello, refusal: Refusal },
    #[error("before proving that it belongs to the generation: {0}")]
    Io(#[from] io::Error),
}

fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// The caller's side.
pub(super) fn call(
    mut stream: &Stream,
    credentials: &Credentials,
    to: Rank,
    limit: &Limit,
) -> Result<(), CallError> {
    stream.set_write_timeout(limit.left())?;
    let hello = Hello {
        generation: credentials.generation,
        from: credentials.rank,
        to,
        nonce: nonce()?,
    };
    stream.write_all(&hello.encode())?;
    let answer = Answer::decode(&socket::read(stream, limit)?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "what answers there does not speak this protocol",
        )
    })?;
    if let Some(refusal) = refusal(answer.verdict) {
        return Err(CallError::Refused(refusal));
    }
    if !credentials.verify(Role::Listener, &hello, &answer.nonce, &answer.proof)? {
        return Err(CallError::Refused(Refusal::Proof));
    }
    let proof = credentials.prove(Role::Caller, &hello, &answer.nonce)?;
    stream.write_all(&proof)?;
    // Without this the caller might hold a connection that the listener has given up.
    if socket::read(stream, limit)? != IN {
        return Err(CallError::Refused(Refusal::Proof));
    }
    Ok(())
}

/// The listener's side. `admit` says which generation is being formed, if the hello is one of its
/// calls. Returns who called.
pub(super) fn answer(
    mut stream: &Stream,
    limit: &Limit,
    admit: impl FnOnce(&Hello) -> Result<Credentials, Verdict>,
) -> Result<Hello, Stranger> {
    stream.set_write_timeout(limit.left())?;
    let hello = Hello::decode(&socket::read(stream, limit)?).ok_or(Stranger::Garbage)?;
    let credentials = match admit(&hello) {
        Ok(credentials) => credentials,
        Err(verdict) => {
            stream.write_all(&Answer::refusal(verdict).encode())?;
            let refusal = refusal(verdict).unwrap_or(Refusal::Closed);
            return Err(Stranger::Refused { hello, refusal });
        }
    };
    let nonce = nonce()?;
    let answer = Answer {
        verdict: Verdict::Welcome,
        nonce,
        proof: credentials.prove(Role::Listener, &hello, &nonce)?,
    };
    stream.write_all(&answer.encode())?;
    let proof = socket::read(stream, limit)?;
    if !credentials.verify(Role::Caller, &hello, &nonce, &proof)? {
        let refusal = Refusal::Proof;
        return Err(Stranger::Refused { hello, refusal });
    }
    stream.write_all(&IN)?;
    Ok(hello)
}

fn refusal(verdict: Verdict) -> Option<Refusal> {
    match verdict {
        Verdict::Welcome => None,
        Verdict::Stale(newest) => Some(Refusal::Stale { newest }),
        Verdict::NotYet => Some(Refusal::NotYet),
        Verdict::Closed => Some(Refusal::Closed),
        Verdict::NotMember => Some(Refusal::NotMember),
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::GroupPeer;
    use super::*;

    fn credentials(change: impl FnOnce(&mut Group)) -> Credentials {
        let peer = |replicas| GroupPeer {
            address: "worker:1".to_owned(),
            replicas,
        };
        let mut group = Group {
            generation: Generation(3),
            rank: Rank(0),
            peers: vec![peer(0..2), peer(2..4)],
            replicas: 4,
            secret: [5; 32],
        };
        change(&mut group);
        Credentials::of(&group)
    }

    #[test]
    fn a_proof_holds_for_nothing_but_its_own_conversation() {
        let hello = Hello {
            generation: Generation(3),
            from: Rank(1),
            to: Rank(0),
            nonce: [1; 32],
        };
        let nonce = [2; 32];
        let mine = credentials(|_| ());
        let proof = mine.prove(Role::Caller, &hello, &nonce).unwrap();
        let holds = |by: &Credentials, role, hello: &Hello, nonce: &Nonce| {
            by.verify(role, hello, nonce, &proof).unwrap()
        };
        assert!(holds(&mine, Role::Caller, &hello, &nonce));
        assert!(!holds(&mine, Role::Listener, &hello, &nonce), "reflected");
        assert!(!holds(&mine, Role::Caller, &hello, &[3; 32]), "replayed");
        let other = Hello {
            from: Rank(2),
            ..hello
        };
        assert!(!holds(&mine, Role::Caller, &other, &nonce), "another rank");
        let other = Hello {
            generation: Generation(4),
            ..hello
        };
        assert!(
            !holds(&mine, Role::Caller, &other, &nonce),
            "another generation"
        );
        let stranger = credentials(|group| group.secret[31] ^= 1);
        assert!(
            !holds(&stranger, Role::Caller, &hello, &nonce),
            "another secret"
        );
        let moved = credentials(|group| {
            group.peers[0].replicas = 0..1;
            group.peers[1].replicas = 1..4;
        });
        assert!(!holds(&moved, Role::Caller, &hello, &nonce), "other hosts");
    }
}
