//! What a connection thread of the peer does, one step at a time.

use super::mirror::{At, Outside, PeerProcess, Session};
use super::network::{Down, PEER, Read, Up};
use super::{Defect, times};
use crate::peer::gate::{Arrival, Told};
use crate::peer::images::{Failure, Images};
use crate::peer::life::Opening;
use crate::wire::{Message, Outcome, PROTOCOL_VERSION, Response, Welcome};
use mirrorfs_journal::{Body, MirrorRequest, Sequence};
use std::sync::Arc;

/// Messages that a thread reads ahead at a barrier.
const AHEAD_MAX: usize = 6;

impl PeerProcess {
    /// One step of a connection thread. False: it waits.
    pub(super) fn step(&mut self, session: usize, index: usize, out: &mut Outside<'_>) -> bool {
        if self.sessions[session].threads[index].frozen_until > out.now {
            return false;
        }
        let at = std::mem::replace(&mut self.sessions[session].threads[index].at, At::Left);
        let before = std::mem::discriminant(&at);
        let (at, moved) = match self.advance(session, index, at, out) {
            Ok((at, moved)) => (at, moved),
            Err(End::Broken(reason)) => {
                self.sessions[session].end(&reason, out.network);
                (At::Staying, true)
            }
            Err(End::Failed(sequence, failure)) => {
                let state = &mut self.sessions[session];
                state.life.latch(&format!("not stored: {}", failure.message));
                if let Some(wire) = state.threads[index].wire {
                    let outcome = Outcome::Failed { errno: failure.errno, message: failure.message };
                    out.network.send_down(wire, Down::Response(Response::Request(sequence, outcome)));
                }
                (At::Lingering(out.now + times().heartbeat_timeout), true)
            }
        };
        let moved = moved || std::mem::discriminant(&at) != before;
        self.sessions[session].threads[index].at = at;
        moved
    }

    fn advance(
        &mut self,
        session: usize,
        index: usize,
        at: At,
        out: &mut Outside<'_>,
    ) -> Result<(At, bool), End> {
        let predecessor = self.sessions[session].predecessor;
        let free = predecessor.is_none_or(|before| self.sessions[before].life.is_finished())
            || out.defect == Some(Defect::OldSessionStillApplying);
        let state = &mut self.sessions[session];
        let over = state.life.is_over();
        match at {
            At::Ready if over => Ok((At::Staying, true)),
            At::Ready => match state.threads[index].socket.take() {
                Some((wire, greeting)) => {
                    state.threads[index].wire = Some(wire);
                    Ok((if index == 0 { At::Opening(greeting) } else { At::WaitImages }, true))
                }
                None if state.life.forsaken(out.now, times().heartbeat_timeout) => {
                    Err(End::broken("no connection came and the heartbeats stopped"))
                }
                None => Ok((At::Ready, false)),
            },
            At::Opening(greeting) => match state.life.opening(free) {
                Opening::Wait => Ok((At::Opening(greeting), false)),
                Opening::Leave => Ok((At::Staying, true)),
                Opening::Open => {
                    let images = Images::open(out.store, &greeting.node, &greeting.luns).map(Arc::new);
                    state.images = Some(images.clone());
                    let wire = state.threads[index].wire.expect("taken with the greeting");
                    state.life.welcomed();
                    match images {
                        Ok(images) => {
                            let luns = images.states();
                            let welcome = Welcome::Accepted { version: PROTOCOL_VERSION, luns };
                            out.network.send_down(wire, Down::Welcome(welcome));
                            Ok((At::ReadBegin, true))
                        }
                        Err(refusal) => {
                            state.life.latch(&format!("refused: {refusal}"));
                            out.network.send_down(wire, Down::Welcome(Welcome::Refused(refusal)));
                            Ok((At::Lingering(out.now + times().heartbeat_timeout), true))
                        }
                    }
                }
            },
            At::WaitImages => match &state.images {
                Some(Ok(_)) => {
                    state.life.welcomed();
                    let wire = state.threads[index].wire.expect("taken with the greeting");
                    let welcome = Welcome::Accepted { version: PROTOCOL_VERSION, luns: Vec::new() };
                    out.network.send_down(wire, Down::Welcome(welcome));
                    Ok((At::WaitBegun, true))
                }
                Some(Err(_)) => Ok((At::Staying, true)),
                None if over => Ok((At::Staying, true)),
                None => Ok((At::WaitImages, false)),
            },
            At::ReadBegin => match read(state, index, out)? {
                Some(Up::Begin(begin)) => {
                    let Some(Ok(images)) = &state.images else { return Ok((At::Staying, true)) };
                    images.begin(&begin.gather).map_err(|failure| End::Broken(failure.message))?;
                    if !state.life.begin() {
                        return Err(End::broken("the session began before all were there"));
                    }
                    Ok((At::Reading, true))
                }
                Some(_) => Err(End::broken("no begin")),
                None => Ok((At::ReadBegin, false)),
            },
            At::WaitBegun if over => Ok((At::Staying, true)),
            At::WaitBegun if state.life.begun() => Ok((At::Reading, true)),
            At::WaitBegun => Ok((At::WaitBegun, false)),
            At::Reading => {
                let message = match state.threads[index].ahead.pop_front() {
                    Some(message) => Some(message),
                    None => match read(state, index, out)? {
                        Some(Up::Message(message)) => Some(message),
                        Some(_) => return Err(End::broken("neither a record nor a goodbye")),
                        None => None,
                    },
                };
                match message {
                    None if over => Ok((At::Staying, true)),
                    None if state.array.must_close(index as u16, out.now) => {
                        Err(End::broken("no request, and its element is closed or too old"))
                    }
                    None => Ok((At::Reading, false)),
                    Some(_) if over => Ok((At::Staying, true)),
                    Some(Message::Goodbye) => {
                        state.array.release(index as u16);
                        if let Some(wire) = state.threads[index].wire {
                            out.network.close(wire, PEER);
                        }
                        if state.life.goodbye() {
                            state.end("the primary said goodbye", out.network);
                        }
                        Ok((At::Staying, true))
                    }
                    Some(Message::Request(request)) => Ok((At::Holding(request), true)),
                    Some(Message::Barrier(barrier, lanes)) => Ok((At::Arriving(barrier, lanes), true)),
                    Some(Message::After(epoch)) => Ok((At::Waiting(epoch), true)),
                }
            }
            At::Holding(request) => {
                if let Some(notes) = &mut out.notes {
                    let what = match request.range() {
                        Some((offset, length)) => {
                            format!("blocks {:?}", super::blocks::blocks_of(offset, length))
                        }
                        None => format!("{:?}", request.body),
                    };
                    let (epoch, lun) = (request.epoch, request.lun.0);
                    notes.push(format!(
                        "session {session}: {} of LUN {lun}, epoch {epoch}, {:?}: {what}",
                        request.sequence, request.origin
                    ));
                }
                let Some(Ok(images)) = &state.images else { return Ok((At::Staying, true)) };
                let outcome =
                    images.apply(&request).map_err(|failure| End::Failed(request.sequence, failure))?;
                if let Some(wire) = state.threads[index].wire {
                    let response = Response::Request(request.sequence, outcome);
                    out.network.send_down(wire, Down::Response(response));
                }
                Ok((At::Reading, true))
            }
            At::Arriving(barrier, lanes) => {
                let Body::Barrier { previous } = &barrier.body else { return Err(End::broken("no barrier")) };
                let told = Told { epoch: barrier.epoch, lanes, previous };
                match state.gate.arrive(index as u16, &told) {
                    Arrival::Mismatch(why) => Err(End::Failed(barrier.sequence, Failure::rule(why))),
                    Arrival::Complete => Ok((At::Completing(barrier), true)),
                    Arrival::Wait => Ok((At::Waiting(barrier.epoch), true)),
                }
            }
            At::Completing(_) if over => Ok((At::Staying, true)),
            At::Completing(request) => {
                if out.defect == Some(Defect::DurableBeforeSync) {
                    answer_durable(state, index, &request, out);
                    return Ok((At::Completed(request), true));
                }
                complete(state, &request)?;
                Ok((At::Completed(request), true))
            }
            At::Completed(request) => {
                if out.defect == Some(Defect::DurableBeforeSync) {
                    complete(state, &request)?;
                    state.gate.open();
                } else {
                    state.gate.open();
                    answer_durable(state, index, &request, out);
                }
                Ok((At::Reading, true))
            }
            At::Waiting(_) if over => Ok((At::Staying, true)),
            At::Waiting(epoch) if state.gate.passes(index as u16, epoch) => Ok((At::Reading, true)),
            At::Waiting(epoch) => {
                let ahead = &state.threads[index].ahead;
                let may_read = ahead.len() < AHEAD_MAX && !matches!(ahead.back(), Some(Message::Goodbye));
                match if may_read { read(state, index, out)? } else { None } {
                    Some(Up::Message(message)) => {
                        state.threads[index].ahead.push_back(message);
                        Ok((At::Waiting(epoch), true))
                    }
                    Some(_) => Err(End::broken("neither a record nor a goodbye")),
                    None => Ok((At::Waiting(epoch), false)),
                }
            }
            At::Lingering(until) if out.now < until => {
                let open = state.threads[index].wire.is_some_and(|wire| {
                    matches!(out.network.read_up(wire, out.now), Read::Nothing | Read::Frame(_))
                });
                if open { Ok((At::Lingering(until), false)) } else { Err(End::broken("not stored")) }
            }
            At::Lingering(_) => Err(End::broken("not stored")),
            At::Staying if state.life.must_stay() => Ok((At::Staying, false)),
            At::Staying => {
                state.life.left();
                Ok((At::Left, true))
            }
            At::Left => Ok((At::Left, false)),
        }
    }
}

fn complete(state: &Session, request: &MirrorRequest) -> Result<(), End> {
    let (Some(Ok(images)), Body::Barrier { previous }) = (&state.images, &request.body) else {
        return Ok(());
    };
    images.complete(request.epoch, previous).map_err(|failure| End::Failed(request.sequence, failure))
}

fn answer_durable(state: &Session, index: usize, request: &MirrorRequest, out: &mut Outside<'_>) {
    if let Body::Barrier { previous } = &request.body {
        out.answered.push((request.epoch.0, previous.iter().map(|(lun, _)| usize::from(lun.0)).collect()));
    }
    if let Some(wire) = state.threads[index].wire {
        out.network.send_down(wire, Down::Response(Response::Durable(request.epoch)));
    }
}

enum End {
    Broken(String),
    Failed(Sequence, Failure),
}

impl End {
    fn broken(reason: &str) -> Self {
        Self::Broken(reason.to_owned())
    }
}

/// The next frame of a thread's wire; `None`: nothing yet.
fn read(state: &Session, index: usize, out: &mut Outside<'_>) -> Result<Option<Up>, End> {
    let Some(wire) = state.threads[index].wire else { return Err(End::broken("no socket")) };
    match out.network.read_up(wire, out.now) {
        Read::Nothing => Ok(None),
        Read::Frame(frame) => {
            state.array.heard_one(index as u16, out.now);
            Ok(Some(frame))
        }
        Read::End => Err(End::broken("closed by the primary")),
        Read::Broken => Err(End::broken("reset")),
    }
}
