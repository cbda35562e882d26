//! What a connection thread does with its socket: welcome, then read, apply, answer; at a barrier, meet the others.

use super::gate::{Arrival, Told};
use super::images::{Failure, Images};
use super::session::{READ_AHEAD_BYTES, Session};
use crate::transport::{Receiver, Sender, Spin, Transport};
use crate::wire::codec::{self, WireError};
use crate::wire::{Begin, Greeting, Lanes, Message, Outcome, PROTOCOL_VERSION, Response, Welcome};
use mirrorfs_journal::{Body, Epoch, MirrorRequest, REGION_BYTES, Sequence};
use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Bytes of answers that are sent at once, even if more requests are at hand.
const ANSWER_BYTES: usize = 4 << 10;
/// What a record counts in the read-ahead beside its payload.
const RECORD_BYTES: u64 = 128;

/// How a connection thread ends, if not by an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// The primary ended it cleanly.
    Goodbye,
    /// The session is over.
    Over,
}

/// Serves one connection to its end.
pub(super) fn serve(
    session: &Session,
    index: u16,
    mut transport: Transport,
    greeting: Greeting,
) -> Result<Leave, String> {
    let clock = session.shared.clock;
    if !session.array.open(index, transport.closer(), clock.now()) {
        return Err("its element was marked closed".to_owned());
    }
    let images = if index == 0 {
        session.open_images(|| Images::open(session.shared.store.as_ref(), &greeting.node, &greeting.luns))
    } else {
        session.wait_images()
    };
    let welcome = match &images {
        None => return Ok(Leave::Over),
        Some(Err(refusal)) => Welcome::Refused(refusal.clone()),
        Some(Ok(images)) => Welcome::Accepted {
            version: PROTOCOL_VERSION,
            luns: if index == 0 { images.states() } else { Vec::new() },
        },
    };
    // Before the primary can know of it, so that its `Begin` finds all n counted.
    session.welcomed();
    send_welcome(transport.halves().0, &welcome).map_err(|error| error.to_string())?;
    let images = match images {
        Some(Ok(images)) => images,
        Some(Err(refusal)) => {
            session.latch(&format!("refused: {refusal}"));
            let (sender, receiver) = transport.split();
            linger(session, sender, receiver);
            return Err(refusal.to_string());
        }
        None => return Ok(Leave::Over),
    };
    let (sender, mut receiver) = transport.split();
    let array = Arc::clone(&session.array);
    receiver.set_on_received(Box::new(move |_| array.heard_one(index, clock.now())));
    if index == 0 {
        let begin: Begin = codec::read_control(&mut receiver).map_err(|error| error.to_string())?;
        images.begin(&begin.gather).and_then(|()| session.begin()).map_err(|failure| failure.message)?;
        log::info!("session of {} with {} connections begins", greeting.node, greeting.count);
    } else if !session.wait_begun() {
        return Ok(Leave::Over);
    }
    let mut connection = Connection {
        session,
        index,
        images,
        sender,
        receiver,
        spin: Spin::default(),
        answers: Vec::new(),
        ahead: VecDeque::new(),
    };
    let result = connection.run();
    connection.forget_ahead();
    match result {
        Ok(leave) => Ok(leave),
        Err(End::Broken(reason)) => Err(reason),
        Err(End::Failed(sequence, failure)) => {
            session.latch(&format!("not stored: {}", failure.message));
            connection.answer_failed(sequence, &failure);
            linger(session, connection.sender, connection.receiver);
            Err(failure.message)
        }
    }
}

/// Sends a welcome, of whatever kind.
pub(super) fn send_welcome(sender: &mut Sender, welcome: &Welcome) -> Result<(), WireError> {
    let frame = codec::encode_control(welcome)?;
    sender.send(&[&frame])?;
    sender.flush()?;
    Ok(())
}

/// Reads on (and throws away) until the primary has closed, for a bounded time: closing a socket with unread bytes
/// would reset the connection, and the last answer could be lost with it.
fn linger(session: &Session, _sender: Sender, mut receiver: Receiver) {
    let deadline = Instant::now() + session.linger();
    let mut waste = vec![0; 64 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !matches!(receiver.wait_readable(left), Ok(true)) {
            return;
        }
        if !matches!(receiver.read(&mut waste), Ok(1..)) {
            return;
        }
    }
}

/// Why a connection's loop ends with an error.
enum End {
    /// The socket, or what came out of it.
    Broken(String),
    /// A request or barrier that can't be carried out: answered so, and it ends the session.
    Failed(Sequence, Failure),
}

type ReadAhead = VecDeque<Result<Message, WireError>>;

struct Connection<'a> {
    session: &'a Session,
    index: u16,
    images: Arc<Images>,
    sender: Sender,
    receiver: Receiver,
    spin: Spin,
    /// Encoded answers, not yet sent.
    answers: Vec<u8>,
    /// Read while waiting at a barrier; served first.
    ahead: ReadAhead,
}

impl Connection<'_> {
    fn run(&mut self) -> Result<Leave, End> {
        loop {
            let message = match self.next()? {
                Some(message) => message,
                None => return Ok(Leave::Over),
            };
            if self.session.is_over() {
                return Ok(Leave::Over);
            }
            match message {
                Message::Goodbye => {
                    self.send_answers()?;
                    return Ok(Leave::Goodbye);
                }
                Message::Request(request) => self.apply(&request)?,
                Message::Barrier(barrier, told) => {
                    if !self.barrier(&barrier, told)? {
                        return Ok(Leave::Over);
                    }
                }
                Message::After(epoch) => {
                    self.send_answers()?;
                    if !self.wait_for(epoch)? {
                        return Ok(Leave::Over);
                    }
                }
            }
        }
    }

    /// The next message: read ahead, or from the socket, looking at the element at each request timeout. `None`: over.
    fn next(&mut self) -> Result<Option<Message>, End> {
        if let Some(message) = self.ahead.pop_front() {
            if let Ok(message) = &message {
                self.session.read_ahead.fetch_sub(weight(message), Ordering::Relaxed);
            }
            return self.judge(message).map(Some);
        }
        if !self.receiver.has_buffered() {
            self.send_answers()?;
            while !self.ask()? && !self.wait_readable()? {
                if self.session.is_over() {
                    return Ok(None);
                }
                if self.session.array.must_close(self.index, self.session.shared.clock.now()) {
                    return Err(End::Broken("no request, and its element is closed or too old".to_owned()));
                }
            }
        }
        let message = codec::read_message(&mut self.receiver);
        self.judge(message).map(Some)
    }

    /// Asks the socket for a moment before sleeping; one thread of a session at a time.
    fn ask(&mut self) -> Result<bool, End> {
        if self.session.asking.swap(true, Ordering::Acquire) {
            return Ok(false);
        }
        let ready = self.spin.ask(&mut self.receiver);
        self.session.asking.store(false, Ordering::Release);
        ready.map_err(|error| End::Broken(error.to_string()))
    }

    fn wait_readable(&mut self) -> Result<bool, End> {
        let timeout = self.session.shared.config.times.request_timeout;
        self.receiver.wait_readable(timeout).map_err(|error| End::Broken(error.to_string()))
    }

    fn judge(&self, message: Result<Message, WireError>) -> Result<Message, End> {
        message.map_err(|error| match error {
            WireError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                End::Broken("closed by the primary".to_owned())
            }
            WireError::Io(error) => End::Broken(error.to_string()),
            error => {
                self.session.shared.refused.frames_bad.fetch_add(1, Ordering::Relaxed);
                End::Failed(Session::NO_SEQUENCE, Failure::rule(error.to_string()))
            }
        })
    }

    fn apply(&mut self, request: &MirrorRequest) -> Result<(), End> {
        let outcome = self.images.apply(request).map_err(|failure| End::Failed(request.sequence, failure))?;
        self.session.count_applied(request.payload_bytes() as u64);
        codec::encode_response(&Response::Request(request.sequence, outcome), &mut self.answers);
        if self.answers.len() >= ANSWER_BYTES {
            self.send_answers()?;
        }
        Ok(())
    }

    /// Meets the other participants. False if the session is over.
    fn barrier(&mut self, barrier: &MirrorRequest, lanes: Lanes) -> Result<bool, End> {
        self.send_answers()?;
        let fail = |failure| End::Failed(barrier.sequence, failure);
        let Body::Barrier { previous } = &barrier.body else {
            return Err(fail(Failure::rule(format!("record {} is no barrier", barrier.sequence))));
        };
        let gate = &self.session.gate;
        match gate.arrive(self.index, &Told { epoch: barrier.epoch, lanes, previous }) {
            Arrival::Mismatch(why) => Err(fail(Failure::rule(why))),
            Arrival::Complete => {
                if self.session.is_over() {
                    return Ok(false);
                }
                self.images.complete(barrier.epoch, previous).map_err(fail)?;
                gate.open();
                codec::encode_response(&Response::Durable(barrier.epoch), &mut self.answers);
                self.send_answers()?;
                Ok(true)
            }
            Arrival::Wait => self.wait_for(barrier.epoch),
        }
    }

    /// Waits until a barrier is complete, reading ahead meanwhile. False if the session is over.
    fn wait_for(&mut self, epoch: Epoch) -> Result<bool, End> {
        let gate = &self.session.gate;
        loop {
            if self.session.is_over() {
                return Ok(false);
            }
            if gate.passes(self.index, epoch) {
                return Ok(true);
            }
            let may_read = self.may_read_ahead();
            if may_read && self.receiver.has_buffered() {
                self.read_ahead();
                continue;
            }
            let socket = may_read.then(|| self.receiver.as_fd());
            let ready = crate::waker::wait(gate.waker(self.index), socket, None)
                .map_err(|error| End::Broken(error.to_string()))?;
            if ready.readable && !ready.woken {
                self.read_ahead();
            }
        }
    }

    /// Nothing is read behind an error or a goodbye, nor beyond the session's budget.
    fn may_read_ahead(&self) -> bool {
        !matches!(self.ahead.back(), Some(Ok(Message::Goodbye) | Err(_)))
            && self.session.read_ahead.load(Ordering::Relaxed) + REGION_BYTES <= READ_AHEAD_BYTES
    }

    fn read_ahead(&mut self) {
        let message = codec::read_message(&mut self.receiver);
        if let Ok(message) = &message {
            self.session.read_ahead.fetch_add(weight(message), Ordering::Relaxed);
        }
        self.ahead.push_back(message);
    }

    fn forget_ahead(&mut self) {
        for message in self.ahead.drain(..).flatten() {
            self.session.read_ahead.fetch_sub(weight(&message), Ordering::Relaxed);
        }
    }

    fn answer_failed(&mut self, sequence: Sequence, failure: &Failure) {
        let outcome = Outcome::Failed { errno: failure.errno, message: failure.message.clone() };
        codec::encode_response(&Response::Request(sequence, outcome), &mut self.answers);
        // If it can't be sent the primary finds a broken connection, which says as much.
        let _ = self.send_answers();
    }

    fn send_answers(&mut self) -> Result<(), End> {
        if self.answers.is_empty() {
            return Ok(());
        }
        let sent = self.sender.send(&[&self.answers]).and_then(|()| self.sender.flush());
        self.answers.clear();
        sent.map_err(|error| End::Broken(error.to_string()))
    }
}

fn weight(message: &Message) -> u64 {
    match message {
        Message::Request(request) => RECORD_BYTES + request.payload_bytes() as u64,
        Message::Barrier(..) | Message::After(_) | Message::Goodbye => RECORD_BYTES,
    }
}
