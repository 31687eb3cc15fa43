//! The network between workers and their coordinator, and between workers.
//!
//! A session is a TCP connection: what is said on it arrives in order and once, late perhaps, up to
//! a point at which the connection breaks; then the two ends learn of it at different times. Where
//! nothing gets through, what is said waits, until the network is whole again or an end gives up.

use super::chance::Chance;
use super::worker::{Input, ProcessId};
use super::world::{Happening, World};
use crate::membership::{Now, Order, Word};
use std::time::Duration;

pub(super) type ConnectionId = usize;

/// Both ends ping an idle connection every 5 s and give it up 10 s later.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// For one attempt to connect.
const CONNECT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Worker,
    Coordinator,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Side::Worker => Side::Coordinator,
            Side::Coordinator => Side::Worker,
        }
    }
}

/// What goes through a connection.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// The worker opens it.
    Open,
    /// The coordinator has opened it.
    Opened,
    Word(Word),
    /// With the life of the coordinator, which stands for its secret.
    Order(Order, u64),
    /// The end, in order or not.
    Closed(&'static str),
}

/// What one side is told.
#[derive(Clone, Debug, Default)]
struct Way {
    /// Nothing arrives before what was sent before.
    last: Now,
    /// What would arrive later is lost.
    cut: Option<Now>,
    /// This side knows that the connection is over.
    closed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) worker: ProcessId,
    /// Of the coordinator.
    pub(super) life: u64,
    opened: bool,
    ways: [Way; 2],
}

impl Connection {
    fn to(&mut self, side: Side) -> &mut Way {
        &mut self.ways[side as usize]
    }
}

#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) connections: Vec<Connection>,
    /// Two workers that can't reach each other, since when and until when.
    apart: Vec<(ProcessId, ProcessId, Now, Now)>,
    /// Messages in a thousand that take long.
    late: u64,
}

impl Network {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        Self {
            connections: Vec::new(),
            apart: Vec::new(),
            late: chance.pick(&[0, 5, 30, 150]).unwrap_or(0),
        }
    }

    /// Since when and until when nothing gets from one worker to another.
    pub(super) fn apart(&self, a: ProcessId, b: ProcessId, now: Now) -> Option<(Now, Now)> {
        let found = self.apart.iter().find(|(x, y, since, until)| {
            ((*x, *y) == (a, b) || (*x, *y) == (b, a)) && *since <= now && now < *until
        });
        found.map(|(_, _, since, until)| (*since, *until))
    }

    pub(super) fn part(&mut self, a: ProcessId, b: ProcessId, since: Now, until: Now) {
        self.apart.push((a, b, since, until));
    }

    pub(super) fn heal(&mut self) {
        self.apart.clear();
        self.late = self.late.min(5);
    }
}

impl World {
    /// What a message takes.
    pub(super) fn delay(&mut self) -> Duration {
        let late = self.network.late;
        if !self.chance.in_thousand(late) {
            self.chance
                .time(Duration::from_micros(100), Duration::from_millis(3))
        } else if self.chance.in_thousand(900) {
            self.chance.ms(3, 300)
        } else {
            self.chance.ms(300, 3000)
        }
    }

    /// A worker tries to open a session.
    pub(super) fn connect(&mut self, process: ProcessId) -> ConnectionId {
        let id = self.network.connections.len();
        self.network.connections.push(Connection {
            worker: process,
            life: self.coordinator.life,
            opened: false,
            ways: <[Way; 2]>::default(),
        });
        let reached = self.workers[process].cut_off_until <= self.now;
        if self.coordinator.up.is_some() {
            self.send(id, Side::Coordinator, Message::Open);
        } else if reached {
            let refused = self.delay();
            self.after(refused, Happening::Worker(process, Input::Unreachable(id)));
        }
        self.after(CONNECT, Happening::Worker(process, Input::Unreachable(id)));
        id
    }

    pub(super) fn is_opened(&self, connection: ConnectionId) -> bool {
        self.network.connections[connection].opened
    }

    /// Says something to one side of a connection.
    pub(super) fn send(&mut self, connection: ConnectionId, to: Side, message: Message) {
        let delay = self.delay();
        let found = &mut self.network.connections[connection];
        let cut_off_until = self.workers[found.worker].cut_off_until;
        let way = found.to(to);
        let mut at = (self.now + delay).max(way.last);
        if cut_off_until > self.now {
            at = at.max(cut_off_until + delay);
        }
        way.last = at;
        self.schedule(at, Happening::Arrives(connection, to, message));
    }

    /// One side is done with a connection; the other learns of it after all that was said.
    pub(super) fn close(&mut self, connection: ConnectionId, by: Side, why: &'static str) {
        let way = self.network.connections[connection].to(by);
        if !std::mem::replace(&mut way.closed, true) {
            self.send(connection, by.other(), Message::Closed(why));
        }
    }

    /// A connection breaks: of what is under way, some gets through.
    pub(super) fn break_connection(&mut self, connection: ConnectionId) {
        for side in [Side::Worker, Side::Coordinator] {
            let cut = self.now + self.chance.ms(0, 5);
            let notice = cut + self.chance.ms(0, 2000);
            let way = self.network.connections[connection].to(side);
            way.cut = Some(way.cut.map_or(cut, |before| before.min(cut)));
            let closed = Message::Closed("the connection was reset");
            self.schedule(notice, Happening::Arrives(connection, side, closed));
        }
    }

    /// Nothing gets through between a worker and the coordinator, for a while.
    pub(super) fn cut_off(&mut self, process: ProcessId, length: Duration) {
        let worker = &mut self.workers[process];
        worker.cut_off_until = worker.cut_off_until.max(self.now + length);
        // Its consequences come later, the last when the connection is given up.
        worker.disturbed_at = Some(worker.cut_off_until + KEEP_ALIVE);
        self.watch(process, &[Side::Worker, Side::Coordinator]);
    }

    /// Has these sides of a worker's connections give them up if they hear nothing.
    pub(super) fn watch(&mut self, process: ProcessId, sides: &[Side]) {
        let Some(connection) = self.workers[process].connection else {
            return;
        };
        for side in sides {
            let wait = KEEP_ALIVE + self.chance.ms(0, 2000);
            self.after(wait, Happening::KeepAlive(connection, *side));
        }
    }

    pub(super) fn keep_alive(&mut self, connection: ConnectionId, side: Side) {
        let found = &self.network.connections[connection];
        let worker = &self.workers[found.worker];
        let cut_off = worker.cut_off_until > self.now;
        let silent = match side {
            Side::Worker => self.coordinator.is_stopped(),
            Side::Coordinator => worker.is_stopped(),
        };
        if cut_off || silent {
            let closed = Message::Closed("keep-alive timed out");
            if !self.network.connections[connection].to(side).closed {
                self.send(
                    connection,
                    side.other(),
                    Message::Closed("the connection was reset"),
                );
            }
            self.arrives(connection, side, closed);
        }
    }

    pub(super) fn arrives(&mut self, connection: ConnectionId, side: Side, message: Message) {
        let now = self.now;
        let found = &mut self.network.connections[connection];
        let (process, life) = (found.worker, found.life);
        let way = found.to(side);
        if way.closed {
            return;
        }
        match message {
            Message::Closed(_) => way.closed = true,
            _ if way.cut.is_some_and(|cut| now > cut) => return,
            Message::Opened => found.opened = true,
            _ => {}
        }
        match side {
            Side::Worker => self.worker_input(process, Input::Session(connection, message)),
            Side::Coordinator => self.coordinator_input(life, connection, message),
        }
    }
}
