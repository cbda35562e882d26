//! Preamble and Noise handshake, bounded in time and bytes.

use super::{Cipher, TransportError};
use crate::config::{Key, Security};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NOISE: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// Binds what the keys are used for, and who is who, into the handshake's hash.
const PROLOGUE: &[u8] = b"mirrorfs data connection; initiator: primary; responder: mirror";
const PSK_CONTEXT: &str = "mirrorfs 2026 data connection noise psk";

const MAGIC: &[u8; 8] = b"mfs-link";
/// Preamble, from both sides: magic, then mode (initiator) or verdict (responder), then zeros.
const PREAMBLE: usize = 16;
/// Both messages of NNpsk0: an ephemeral key and the tag of an empty payload.
const NOISE_MESSAGE: usize = 48;

const MODE_PLAIN: u8 = 0;
const MODE_NOISE: u8 = 1;

const VERDICT_OK: u8 = 0;
const VERDICT_KEY_NEEDED: u8 = 1;
const VERDICT_KEY_MISSING: u8 = 2;
const VERDICT_WRONG_KEY: u8 = 3;

/// A socket during the handshake: every read and write ends at the one deadline.
pub(super) struct Bounded<'a> {
    stream: &'a TcpStream,
    peer: SocketAddr,
    deadline: Instant,
}

impl<'a> Bounded<'a> {
    pub(super) fn new(stream: &'a TcpStream, peer: SocketAddr, timeout: Duration) -> Self {
        Self { stream, peer, deadline: Instant::now() + timeout }
    }

    fn left(&self) -> Result<Duration, TransportError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(TransportError::Timeout { peer: self.peer }) } else { Ok(left) }
    }

    fn failed(&self, source: io::Error) -> TransportError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                TransportError::Timeout { peer: self.peer }
            }
            io::ErrorKind::UnexpectedEof => TransportError::Io {
                action: "handshake with",
                peer: self.peer,
                source: io::Error::new(source.kind(), "the other side closed the connection"),
            },
            _ => TransportError::Io { action: "handshake with", peer: self.peer, source },
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], TransportError> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while filled < N {
            let left = self.left()?;
            self.stream.set_read_timeout(Some(left)).map_err(|error| self.failed(error))?;
            match (&mut &*self.stream).read(&mut bytes[filled..]) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        // At most some hundred bytes into an empty socket buffer: one timeout is bound enough.
        let left = self.left()?;
        self.stream.set_write_timeout(Some(left)).map_err(|error| self.failed(error))?;
        (&mut &*self.stream).write_all(bytes).map_err(|error| self.failed(error))
    }

    fn read_preamble(&mut self) -> Result<u8, TransportError> {
        let bytes: [u8; PREAMBLE] = self.read()?;
        if bytes[..8] != MAGIC[..] || bytes[9..].iter().any(|&byte| byte != 0) {
            return Err(TransportError::NotMirrorfs { peer: self.peer });
        }
        Ok(bytes[8])
    }
}

fn preamble(value: u8) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8] = value;
    bytes
}

fn builder<'a>(psk: &'a [u8; 32]) -> Result<snow::Builder<'a>, TransportError> {
    Ok(snow::Builder::new(NOISE.parse()?).prologue(PROLOGUE)?.psk(0, psk)?)
}

fn psk(key: &Key) -> [u8; 32] {
    blake3::derive_key(PSK_CONTEXT, &key.0)
}

/// The primary's part: preamble and first message in one write, then the peer's verdict and second message.
pub(super) fn initiate(socket: &mut Bounded<'_>, security: &Security) -> Result<Cipher, TransportError> {
    let peer = socket.peer;
    let mut first = Vec::with_capacity(PREAMBLE + NOISE_MESSAGE);
    let noise = match security {
        Security::None => {
            first.extend_from_slice(&preamble(MODE_PLAIN));
            None
        }
        Security::Key(key) => {
            first.extend_from_slice(&preamble(MODE_NOISE));
            let psk = psk(key);
            let mut noise = builder(&psk)?.build_initiator()?;
            let mut message = [0; NOISE_MESSAGE];
            let length = noise.write_message(&[], &mut message)?;
            first.extend_from_slice(&message[..length]);
            Some(noise)
        }
    };
    socket.write(&first)?;
    match socket.read_preamble()? {
        VERDICT_OK => {}
        VERDICT_KEY_NEEDED => return Err(TransportError::KeyNeeded { peer }),
        VERDICT_KEY_MISSING => return Err(TransportError::KeyMissing { peer }),
        VERDICT_WRONG_KEY => return Err(TransportError::WrongKey { peer }),
        _ => return Err(TransportError::NotMirrorfs { peer }),
    }
    let Some(mut noise) = noise else { return Ok(None) };
    let message: [u8; NOISE_MESSAGE] = socket.read()?;
    noise.read_message(&message, &mut [0; NOISE_MESSAGE]).map_err(|_| TransportError::WrongKey { peer })?;
    Ok(Some(Arc::new(noise.into_stateless_transport_mode()?)))
}

/// The peer's part. A refusal is said in clear: whoever could abuse it could as well cut the connection.
pub(super) fn respond(socket: &mut Bounded<'_>, security: &Security) -> Result<Cipher, TransportError> {
    let peer = socket.peer;
    match (socket.read_preamble()?, security) {
        (MODE_PLAIN, Security::None) => {
            socket.write(&preamble(VERDICT_OK))?;
            Ok(None)
        }
        (MODE_PLAIN, Security::Key(_)) => {
            socket.write(&preamble(VERDICT_KEY_NEEDED))?;
            Err(TransportError::KeyMissing { peer })
        }
        (MODE_NOISE, security) => {
            // Read in full before any refusal: closing with unread bytes would reset the connection and lose the verdict.
            let message: [u8; NOISE_MESSAGE] = socket.read()?;
            let Security::Key(key) = security else {
                socket.write(&preamble(VERDICT_KEY_MISSING))?;
                return Err(TransportError::KeyNeeded { peer });
            };
            let psk = psk(key);
            let mut noise = builder(&psk)?.build_responder()?;
            if noise.read_message(&message, &mut [0; NOISE_MESSAGE]).is_err() {
                socket.write(&preamble(VERDICT_WRONG_KEY))?;
                return Err(TransportError::WrongKey { peer });
            }
            let mut answer = [0; PREAMBLE + NOISE_MESSAGE];
            answer[..PREAMBLE].copy_from_slice(&preamble(VERDICT_OK));
            let length = noise.write_message(&[], &mut answer[PREAMBLE..])?;
            socket.write(&answer[..PREAMBLE + length])?;
            Ok(Some(Arc::new(noise.into_stateless_transport_mode()?)))
        }
        _ => Err(TransportError::NotMirrorfs { peer }),
    }
}
