//! Which heartbeats count, and what is sent: one side of one link.
//!
//! A heartbeat counts only if it is authentic, newer than the last, and echoes something that we sent within the timeout: a
//! recording can do none of the last two. Nothing is ever sent as an answer.

use super::Now;
pub use super::datagram::{DATAGRAM_BYTES, Datagram, LinkId, MacKey, NotAuthentic, Side};
use crate::config::Times;
use crate::wire::SessionId;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Marks of the other side's array, to be copied into ours by [`crate::connection::ConnectionArray::apply_marks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Session they belong to; marks of another one are ignored.
    pub session: SessionId,
    /// Bit i: element i.
    pub bits: u64,
}

/// What a datagram is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Authentic, newer, echo ours and fresh: update all timestamps, apply the marks.
    Accepted {
        /// The other side's marks.
        marks: Marks,
        /// The other side's boot id is not the one accepted before: a running session ends.
        new_boot: bool,
        /// The first one at all, or the first after a silence longer than the timeout.
        after_interruption: bool,
        /// The other side's number of elements.
        count: u16,
        /// The other side's boot id.
        boot_id: u64,
    },
    /// Authentic and newer, of the known boot, but the other side has not heard us lately: apply the marks only.
    MarksOnly(Marks),
    /// Authentic, not verified: will be echoed to its source at the next tick.
    Candidate,
    /// Counted and ignored.
    Ignored(Ignored),
}

/// Why a datagram was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Empty, truncated, forged.
    NotAuthentic,
    /// Our own direction.
    Reflected,
    /// Another link.
    OtherLink,
    /// Old or repeated.
    Replayed,
}

/// Settings of one side's heartbeats for one link.
#[derive(Clone)]
pub struct HeartbeatConfig {
    /// Which side we are.
    pub side: Side,
    /// The link.
    pub link: LinkId,
    /// MAC key.
    pub key: MacKey,
    /// Interval and timeout are used.
    pub times: Times,
    /// Our boot id: random, not 0, new at each start.
    pub boot_id: u64,
}

/// Counters for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatStats {
    /// Accepted.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Not authentic.
    pub not_authentic: u64,
    /// Replayed or reflected, or of another link.
    pub replayed: u64,
    /// Round trip of the last echo.
    pub rtt_us: Option<u64>,
    /// Loss of our beats, as the other side reports it.
    pub loss_percent: u8,
}

/// Shortest interval under loss.
pub const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// The shorter interval is kept so long after the last report of loss: now and then all of a report's beats arrive on a
/// lossy network too, and at the longer interval few losses in a row would pass for an interruption.
const LOSS_MEMORY: Duration = Duration::from_secs(30);
/// Candidates kept: each costs one datagram a beat.
const CANDIDATES_MAX: usize = 8;
/// Superseded boots remembered, so that what was recorded of them is not even a candidate.
const DEAD_BOOTS_MAX: usize = 64;
/// Own datagrams remembered, whatever the timeout: those before count as not fresh.
const SENT_MAX: usize = 16 * 1024;
/// Beats over which loss is counted.
const LOSS_BEATS: u32 = 20;

/// One side's heartbeats for one link. The sender thread calls `on_tick`, the receiver thread `on_datagram`, under one lock.
pub struct HeartbeatLogic {
    config: HeartbeatConfig,
    session: SessionId,
    count: u16,
    target: Option<SocketAddr>,
    remote: Option<Remote>,
    candidates: Vec<Heard>,
    dead_boots: VecDeque<u64>,
    counter: u64,
    beat: u32,
    interval: Duration,
    /// When the other side last reported loss.
    lossy_at: Option<Now>,
    due: Now,
    /// Our last datagrams; counters are consecutive.
    sent: VecDeque<Sent>,
    last_accepted: Option<Now>,
    stats: HeartbeatStats,
}

/// The last datagram heard from somebody, to be echoed.
#[derive(Clone, Copy)]
struct Heard {
    boot: u64,
    counter: u64,
    addr: SocketAddr,
    at: Now,
    sent_us: u64,
}

/// The verified other side.
struct Remote {
    heard: Heard,
    beats: Beats,
    reported_loss: u8,
}

struct Sent {
    counter: u64,
    at: Now,
    to: SocketAddr,
}

/// Which of the other side's last beats came.
struct Beats {
    newest: u32,
    /// Bit k: beat `newest - k` came.
    came: u32,
    /// How many of the bits mean something, at most [`LOSS_BEATS`].
    known: u32,
}

impl Beats {
    fn first(beat: u32) -> Self {
        Self { newest: beat, came: 1, known: 1 }
    }
    fn note(&mut self, beat: u32) {
        let ahead = beat.wrapping_sub(self.newest);
        if ahead < u32::MAX / 2 {
            self.came = self.came.checked_shl(ahead).unwrap_or(0) | 1;
            self.known = self.known.saturating_add(ahead).min(LOSS_BEATS);
            self.newest = beat;
        } else {
            self.came |= 1u32.checked_shl(ahead.wrapping_neg()).unwrap_or(0);
        }
    }
    fn loss_percent(&self) -> u8 {
        let came = (self.came & ((1 << self.known) - 1)).count_ones();
        u8::try_from((self.known - came) * 100 / self.known).unwrap_or(100)
    }
}

impl HeartbeatLogic {
    /// Nothing heard, first tick due at once.
    #[must_use]
    pub fn new(config: HeartbeatConfig) -> Self {
        Self {
            session: SessionId::default(),
            count: 0,
            target: None,
            remote: None,
            candidates: Vec::new(),
            dead_boots: VecDeque::new(),
            counter: 0,
            beat: 0,
            interval: config.times.heartbeat_interval,
            lossy_at: None,
            due: Now::default(),
            sent: VecDeque::new(),
            last_accepted: None,
            stats: HeartbeatStats::default(),
            config,
        }
    }
    /// Local side: where to send to (resolved address of the peer). The mirror side learns it by itself.
    pub fn set_target(&mut self, target: SocketAddr) {
        self.target = Some(target);
    }
    /// The session that our heartbeats carry from now on, and its number of elements; zero and 0 for none.
    /// Call it after [`crate::connection::ConnectionArray::begin`], so that no old marks go out under the new session.
    pub fn set_session(&mut self, session: SessionId, count: u16) {
        (self.session, self.count) = (session, count);
    }

    /// If a beat is due, puts its datagrams into `out` (`marks`: ours, [`crate::connection::ConnectionArray::marks`]).
    /// Returns when to call again.
    pub fn on_tick(
        &mut self,
        now: Now,
        marks: u64,
        out: &mut Vec<(SocketAddr, [u8; DATAGRAM_BYTES])>,
    ) -> Now {
        if now < self.due {
            return self.due;
        }
        self.adapt_interval(now);
        // Steady, but no burst after a late call.
        let next = self.due + self.interval;
        self.due = if next > now { next } else { now + self.interval };

        self.beat = self.beat.wrapping_add(1);
        let timeout = self.config.times.heartbeat_timeout;
        self.candidates.retain(|candidate| now.since(candidate.at) <= timeout * 2);
        while self.sent.front().is_some_and(|sent| now.since(sent.at) > timeout) || self.sent.len() > SENT_MAX
        {
            self.sent.pop_front();
        }
        // Candidates come last: of what reaches the other side it echoes the newest, and only the echo of what was sent
        // to a candidate's address verifies it.
        let known = self.remote.as_ref().map(|remote| remote.heard);
        match self.config.side {
            Side::Local => {
                let Some(target) = self.target else { return self.due };
                if known.is_none() && self.candidates.is_empty() {
                    self.send(target, None, now, marks, out);
                }
                for heard in known.into_iter().chain(self.candidates.clone()) {
                    self.send(target, Some(heard), now, marks, out);
                }
            }
            Side::Mirror => {
                for heard in known.into_iter().chain(self.candidates.clone()) {
                    self.send(heard.addr, Some(heard), now, marks, out);
                }
            }
        }
        self.due
    }

    /// Judges what the socket received. Never answers.
    pub fn on_datagram(&mut self, bytes: &[u8], from: SocketAddr, now: Now) -> Verdict {
        match Datagram::open(bytes, &self.config.key) {
            Ok(datagram) => self.on_authentic(&datagram, from, now),
            Err(NotAuthentic) => {
                self.stats.not_authentic += 1;
                Verdict::Ignored(Ignored::NotAuthentic)
            }
        }
    }

    /// As `on_datagram`, for one that [`Datagram::open`] has opened with the same key.
    pub fn on_authentic(&mut self, datagram: &Datagram, from: SocketAddr, now: Now) -> Verdict {
        if datagram.side == self.config.side {
            return self.ignore(Ignored::Reflected);
        }
        if datagram.link != self.config.link {
            return self.ignore(Ignored::OtherLink);
        }
        if self.dead_boots.contains(&datagram.boot_id) {
            return self.ignore(Ignored::Replayed);
        }
        let heard = Heard {
            boot: datagram.boot_id,
            counter: datagram.counter,
            addr: from,
            at: now,
            sent_us: datagram.sent_us,
        };
        let echoed_to = self.fresh_echo(datagram, now);
        // The primary asked for the address that it sends to; only the peer has to learn one.
        let proven = echoed_to.is_some_and(|to| self.config.side == Side::Local || to == from);
        let marks = Marks { session: datagram.session, bits: datagram.marks };
        match &mut self.remote {
            Some(remote) if remote.heard.boot == datagram.boot_id => {
                remote.beats.note(datagram.beat);
                if datagram.counter <= remote.heard.counter {
                    return self.ignore(Ignored::Replayed);
                }
                let addr = remote.heard.addr;
                remote.heard = Heard { addr, ..heard };
                if echoed_to.is_some() {
                    remote.reported_loss = datagram.loss_percent;
                }
                if from != addr && self.config.side == Side::Mirror {
                    if proven {
                        remote.heard.addr = from;
                        self.candidates.retain(|candidate| candidate.boot != datagram.boot_id);
                    } else {
                        self.keep_candidate(heard);
                    }
                }
                if echoed_to.is_some() {
                    self.accept(datagram, marks, false, now)
                } else {
                    Verdict::MarksOnly(marks)
                }
            }
            _ => {
                let old = self.candidates.iter().any(|c| c.boot == heard.boot && c.counter >= heard.counter);
                if old {
                    return self.ignore(Ignored::Replayed);
                }
                if !proven {
                    self.keep_candidate(heard);
                    return Verdict::Candidate;
                }
                self.candidates.retain(|candidate| candidate.boot != heard.boot);
                let remote = Remote {
                    heard,
                    beats: Beats::first(datagram.beat),
                    reported_loss: datagram.loss_percent,
                };
                let before = self.remote.replace(remote);
                if let Some(before) = &before {
                    if self.dead_boots.len() == DEAD_BOOTS_MAX {
                        self.dead_boots.pop_front();
                    }
                    self.dead_boots.push_back(before.heard.boot);
                }
                self.accept(datagram, marks, before.is_some(), now)
            }
        }
    }

    /// Whether one was accepted within the heartbeat timeout.
    #[must_use]
    pub fn alive(&self, now: Now) -> bool {
        self.silence(now).is_some_and(|silence| silence <= self.config.times.heartbeat_timeout)
    }
    /// Time since the last accepted one; `None` before the first.
    #[must_use]
    pub fn silence(&self, now: Now) -> Option<Duration> {
        self.last_accepted.map(|last| now.since(last))
    }
    /// Verified address of the other side (mirror side), or the target (local side).
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.config.side {
            Side::Local => self.target,
            Side::Mirror => self.remote.as_ref().map(|remote| remote.heard.addr),
        }
    }
    /// Boot id of the other side, once verified. A greeting must carry this one.
    #[must_use]
    pub fn remote_boot(&self) -> Option<u64> {
        self.remote.as_ref().map(|remote| remote.heard.boot)
    }
    /// Our own boot id.
    #[must_use]
    pub fn boot_id(&self) -> u64 {
        self.config.boot_id
    }
    /// Counters.
    #[must_use]
    pub fn stats(&self) -> HeartbeatStats {
        let loss_percent = self.remote.as_ref().map_or(0, |remote| remote.reported_loss);
        HeartbeatStats { loss_percent, ..self.stats }
    }

    fn adapt_interval(&mut self, now: Now) {
        let set = self.config.times.heartbeat_interval;
        if !self.alive(now) {
            self.interval = set;
        } else if self.remote.as_ref().is_some_and(|remote| remote.reported_loss > 0) {
            self.lossy_at = Some(now);
            self.interval = (self.interval / 2).max(INTERVAL_MIN.min(set));
        } else if self.lossy_at.is_none_or(|at| now.since(at) > LOSS_MEMORY) {
            self.interval = (self.interval * 2).min(set);
        }
    }

    fn send(
        &mut self,
        to: SocketAddr,
        echo: Option<Heard>,
        now: Now,
        marks: u64,
        out: &mut Vec<(SocketAddr, [u8; DATAGRAM_BYTES])>,
    ) {
        self.counter += 1;
        let held = echo.map_or(Duration::ZERO, |echo| now.since(echo.at));
        let datagram = Datagram {
            side: self.config.side,
            count: self.count,
            link: self.config.link,
            boot_id: self.config.boot_id,
            counter: self.counter,
            session: self.session,
            marks,
            echo_boot: echo.map_or(0, |echo| echo.boot),
            echo_counter: echo.map_or(0, |echo| echo.counter),
            sent_us: now.micros(),
            echo_us: echo.map_or(0, |echo| echo.sent_us),
            held_us: u32::try_from(held.as_micros()).unwrap_or(u32::MAX),
            beat: self.beat,
            loss_percent: self.remote.as_ref().map_or(0, |remote| remote.beats.loss_percent()),
        };
        self.sent.push_back(Sent { counter: self.counter, at: now, to });
        self.stats.sent += 1;
        out.push((to, datagram.seal(&self.config.key)));
    }

    /// Where the datagram went that this one echoes, if it is ours and was sent within the timeout.
    fn fresh_echo(&self, datagram: &Datagram, now: Now) -> Option<SocketAddr> {
        if datagram.echo_boot != self.config.boot_id {
            return None;
        }
        let back = datagram.echo_counter.checked_sub(self.sent.front()?.counter)?;
        let sent = self.sent.get(usize::try_from(back).ok()?)?;
        (now.since(sent.at) <= self.config.times.heartbeat_timeout).then_some(sent.to)
    }

    fn keep_candidate(&mut self, heard: Heard) {
        if let Some(known) = self.candidates.iter_mut().find(|candidate| candidate.boot == heard.boot) {
            *known = heard;
            return;
        }
        let oldest = (0..self.candidates.len()).min_by_key(|&index| self.candidates[index].at);
        if let Some(oldest) = oldest.filter(|_| self.candidates.len() == CANDIDATES_MAX) {
            self.candidates.swap_remove(oldest);
        }
        self.candidates.push(heard);
    }

    fn accept(&mut self, datagram: &Datagram, marks: Marks, new_boot: bool, now: Now) -> Verdict {
        let after_interruption = !self.alive(now);
        self.last_accepted = Some(now);
        self.stats.received += 1;
        self.stats.rtt_us =
            Some(now.micros().saturating_sub(datagram.echo_us).saturating_sub(u64::from(datagram.held_us)));
        let (count, boot_id) = (datagram.count, datagram.boot_id);
        Verdict::Accepted { marks, new_boot, after_interruption, count, boot_id }
    }

    fn ignore(&mut self, why: Ignored) -> Verdict {
        self.stats.replayed += 1;
        Verdict::Ignored(why)
    }
}
