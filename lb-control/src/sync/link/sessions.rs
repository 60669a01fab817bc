//! Which session is in force, and how another one comes to be.
//!
//! Whose name sorts lower begins. A new session replaces the one in force when the
//! first message within it was authentic, and by nothing else.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::Link;
use crate::sync::{
    counts::{Limit, Reason},
    handshake::{self, Failed, Hello, Pending},
    session::{MOST_MESSAGES, Session},
    wire::{self, Kind},
};

/// Between two attempts to make a session.
const ATTEMPT: Duration = Duration::from_millis(500);
/// A handshake that is not confirmed by then is forgotten.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(2);
/// What was under way when a session was replaced may still come.
const LATE: Duration = Duration::from_secs(2);
/// A session's longest life.
pub(super) const REKEY_AFTER: Duration = Duration::from_secs(3600);
/// Between two hints.
const HINT: Duration = Duration::from_secs(1);
/// Handshakes that may wait to be confirmed.
const CANDIDATES: usize = 4;
/// Answers to one first message: it comes by every path.
const ANSWERS: usize = 16;
/// Ids of sessions that are known to have been.
const REMEMBERED: usize = 1024;

/// A first message that was answered.
struct Candidate {
    session: Session,
    initiation: Vec<u8>,
    response: Vec<u8>,
    answers: usize,
}

/// The sessions of a link.
pub(super) struct Sessions {
    current: Option<Session>,
    /// The one before, for what comes late.
    previous: Option<(Session, Instant)>,
    /// Of who began: answered, and not confirmed.
    next: Option<Session>,
    /// Of who began: not answered.
    pending: Option<(u64, Pending)>,
    attempt_due: Instant,
    candidates: VecDeque<Candidate>,
    /// Ids of sessions that were asked for.
    seen: VecDeque<u64>,
    hint_due: Instant,
    /// A Diffie–Hellman each.
    handshakes: Limit,
    /// Decryption alone.
    initiations: Limit,
    hints_taken: Limit,
}

impl Sessions {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            current: None,
            previous: None,
            next: None,
            pending: None,
            attempt_due: now,
            candidates: VecDeque::new(),
            seen: VecDeque::new(),
            hint_due: now,
            handshakes: Limit::new(Duration::from_millis(200), 10),
            initiations: Limit::new(Duration::from_micros(500), 200),
            hints_taken: Limit::new(HINT, 2),
        }
    }

    /// Nothing of what there was is of use any more.
    pub(super) fn clear(&mut self, now: Instant) {
        self.current = None;
        self.previous = None;
        self.next = None;
        self.pending = None;
        self.candidates.clear();
        self.attempt_due = now;
        self.hint_due = now;
    }

    #[cfg(test)]
    pub(super) const fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    pub(super) const fn current_mut(&mut self) -> Option<&mut Session> {
        self.current.as_mut()
    }

    pub(super) const fn next_mut(&mut self) -> Option<&mut Session> {
        self.next.as_mut()
    }

    /// The session of this id, wherever it stands.
    pub(super) fn find(&mut self, id: u64) -> Option<&mut Session> {
        let candidates = self.candidates.iter_mut().map(|c| &mut c.session);
        self.current
            .iter_mut()
            .chain(&mut self.next)
            .chain(self.previous.iter_mut().map(|(session, _)| session))
            .chain(candidates)
            .find(|session| session.id == id)
    }

    /// When a session is to be made, or asked for.
    pub(super) fn due(&self, is_initiator: bool) -> Option<Instant> {
        let wants_one = self.renewal();
        if is_initiator {
            Some(wants_one?.max(self.attempt_due))
        } else {
            Some(wants_one?.max(self.hint_due))
        }
    }

    /// From when on a session is wanted.
    fn renewal(&self) -> Option<Instant> {
        match &self.current {
            Some(current) if current.sent() >= MOST_MESSAGES => Some(current.since),
            Some(current) => current.since.checked_add(REKEY_AFTER),
            None => Some(self.attempt_due.min(self.hint_due)),
        }
    }

    fn knows(&self, id: u64) -> bool {
        self.seen.contains(&id)
    }

    fn remember(&mut self, id: u64) {
        if self.seen.len() >= REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(id);
    }
}

impl Link {
    /// Forgets handshakes that came to nothing and begins or asks for another, where
    /// a session is wanted.
    pub(super) fn renew_session(&mut self, now: Instant) {
        let sessions = &mut self.sessions;
        let is_late = |session: &Session| session.since + CONFIRMED_WITHIN <= now;
        sessions.next.take_if(|next| is_late(next));
        sessions.candidates.retain(|c| !is_late(&c.session));
        sessions.previous.take_if(|(_, until)| *until <= now);
        if self
            .sessions
            .due(self.is_initiator())
            .is_none_or(|due| due > now)
        {
            return;
        }
        if self.is_initiator() {
            self.attempt(now);
        } else {
            self.sessions.hint_due = now + HINT;
            let session = self.sessions.current.as_ref().map_or(0, |s| s.id);
            let hint = wire::header(Kind::Hint, session, 0);
            self.send_everywhere(&hint);
        }
    }

    /// Who sent this may have to be told that its session is gone.
    pub(super) fn hint_at(&mut self, now: Instant, path: usize, session: u64) {
        if !self.is_initiator() && self.sessions.hint_due <= now {
            self.sessions.hint_due = now + HINT;
            let hint = wire::header(Kind::Hint, session, 0);
            self.transmits.push_back((path, hint));
        }
    }

    /// Begins a handshake, beside whatever session there is.
    fn attempt(&mut self, now: Instant) {
        self.sessions.attempt_due = now + ATTEMPT;
        let id = self.random.next();
        // Without random numbers the next attempt may have better luck.
        if let Ok((pending, message)) = handshake::initiate(&self.config.key, id, &self.hello()) {
            self.sessions.pending = Some((id, pending));
            let mut datagram = wire::header(Kind::Initiation, id, 0);
            datagram.extend(message);
            self.send_everywhere(&datagram);
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            name: self.config.node.to_string(),
            epoch: self.config.epoch,
            incarnation: self.incarnation,
        }
    }

    /// Anybody may have sent it: it does no more than begin a handshake, now and
    /// then.
    pub(super) fn hinted(&mut self, now: Instant, session: u64) -> Result<(), Reason> {
        if !self.is_initiator() {
            return Err(Reason::WrongRole);
        }
        let sessions = &mut self.sessions;
        let is_ours = |own: &Option<Session>| own.as_ref().is_some_and(|s| s.id == session);
        if session != 0 && !is_ours(&sessions.current) {
            return Err(Reason::UnknownSession);
        }
        let is_under_way = sessions.next.is_some() || sessions.attempt_due > now;
        if !is_under_way && sessions.current.is_some() {
            if !sessions.hints_taken.take(now) {
                return Err(Reason::HandshakeLimited);
            }
            self.attempt(now);
        }
        Ok(())
    }

    /// A first message.
    pub(super) fn initiated(
        &mut self,
        now: Instant,
        path: usize,
        id: u64,
        message: &[u8],
    ) -> Result<(), Reason> {
        if self.is_initiator() {
            return Err(Reason::WrongRole);
        }
        let sessions = &mut self.sessions;
        let mut candidates = sessions.candidates.iter_mut();
        if let Some(known) = candidates.find(|c| c.session.id == id && c.initiation == message) {
            // The same by another path.
            if known.answers >= ANSWERS {
                return Err(Reason::HandshakeLimited);
            }
            known.answers += 1;
            let response = known.response.clone();
            self.transmits.push_back((path, response));
            return Ok(());
        }
        if sessions.knows(id) {
            let current = sessions.current.as_ref().filter(|s| s.id == id);
            // It came late by another path.
            let is_late = current.is_some_and(|s| now < s.since + LATE);
            return if is_late {
                Ok(())
            } else {
                Err(Reason::Replayed)
            };
        }
        if !sessions.initiations.take(now) {
            return Err(Reason::HandshakeLimited);
        }
        let read = handshake::read_initiation(&self.config.key, id, message);
        let (answer, hello) = read.map_err(reason)?;
        if hello.name != *self.config.peer {
            return Err(Reason::WrongNode);
        }
        if !self.sessions.handshakes.take(now) {
            return Err(Reason::HandshakeLimited);
        }
        let (keys, answer) = answer.answer(&self.hello()).map_err(reason)?;
        let mut response = wire::header(Kind::Response, id, 0);
        response.extend(answer);
        self.transmits.push_back((path, response.clone()));
        self.sessions.remember(id);
        if self.sessions.candidates.len() >= CANDIDATES {
            self.sessions.candidates.pop_front();
        }
        self.sessions.candidates.push_back(Candidate {
            session: Session::new(id, keys, hello, now),
            initiation: message.to_vec(),
            response,
            answers: 1,
        });
        Ok(())
    }

    /// A second message.
    pub(super) fn responded(
        &mut self,
        now: Instant,
        id: u64,
        message: &[u8],
    ) -> Result<(), Reason> {
        if !self.is_initiator() {
            return Err(Reason::WrongRole);
        }
        let sessions = &mut self.sessions;
        let Some((_, pending)) = sessions.pending.as_mut().filter(|(own, _)| *own == id) else {
            let known = sessions.find(id);
            // The same by another path.
            let is_late = known.is_some_and(|s| now < s.since + LATE);
            return if is_late {
                Ok(())
            } else {
                Err(Reason::UnknownSession)
            };
        };
        let hello = handshake::read_response(pending, message).map_err(reason)?;
        let Some((_, pending)) = sessions.pending.take() else {
            return Ok(());
        };
        if hello.name != *self.config.peer {
            return Err(Reason::WrongNode);
        }
        let keys = pending.finish().map_err(reason)?;
        sessions.next = Some(Session::new(id, keys, hello, now));
        // Time enough for the confirmation.
        sessions.attempt_due = now + CONFIRMED_WITHIN;
        self.send_keepalives(now);
        Ok(())
    }

    /// A message in the session of this id was authentic: unless it was in force, it
    /// is from now on.
    pub(super) fn confirmed(&mut self, now: Instant, id: u64) {
        let sessions = &mut self.sessions;
        let confirmed = match sessions.next.take_if(|next| next.id == id) {
            Some(next) => next,
            None => {
                let position = sessions.candidates.iter().position(|c| c.session.id == id);
                match position.and_then(|position| sessions.candidates.remove(position)) {
                    Some(candidate) => candidate.session,
                    None => return,
                }
            }
        };
        sessions.candidates.clear();
        sessions.attempt_due = now;
        sessions.hint_due = now + HINT;
        let (epoch, incarnation) = (confirmed.peer.epoch, confirmed.peer.incarnation);
        let replaced = sessions.current.replace(confirmed);
        self.totals.sessions += 1;
        let streams = self.streams.as_ref();
        if streams.is_some_and(|s| (s.epoch, s.incarnation) == (epoch, incarnation)) {
            self.sessions.previous = replaced.map(|session| (session, now + LATE));
        } else {
            self.sessions.previous = None;
            for path in &mut self.paths {
                path.forget_peer();
            }
            self.begin_streams(epoch, incarnation);
        }
        // Whoever began waits for a word in it.
        self.send_keepalives(now);
    }
}

const fn reason(failed: Failed) -> Reason {
    match failed {
        Failed::Key => Reason::WrongKey,
        Failed::Payload | Failed::Internal => Reason::Unreadable,
    }
}
