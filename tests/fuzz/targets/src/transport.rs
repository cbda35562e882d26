//! Connections, plain and encrypted, with somebody on the line who changes bytes.

use crate::{Input, mutate};
use mirrorfs_net::config::{Key, Security};
use mirrorfs_net::transport::{self, TransportOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// Bytes of the preamble and first message, where half of the changes are made.
const HANDSHAKE_BYTES: u64 = 64;
/// Where a side waits for bytes that were taken out, the case waits too. An honest handshake may take as long as the machine likes.
fn options(untouched: bool) -> TransportOptions {
    let handshake_timeout = if untouched { Duration::from_secs(60) } else { Duration::from_secs(1) };
    TransportOptions { handshake_timeout, socket_buffer_bytes: None }
}

/// A change at one place of one direction.
#[derive(Clone, Debug)]
struct Change {
    at: usize,
    take: usize,
    put: Vec<u8>,
    /// The line is cut behind it.
    cut: bool,
}

impl Change {
    /// What becomes of `bytes`, the first of which is number `offset` of the stream; false: the line is cut.
    fn apply(&self, offset: usize, bytes: &mut Vec<u8>) -> bool {
        let Some(at) = self.at.checked_sub(offset).filter(|at| *at < bytes.len()) else { return true };
        let end = (at + self.take).min(bytes.len());
        bytes.splice(at..end, self.put.iter().copied());
        if self.cut {
            bytes.truncate(at);
        }
        !self.cut
    }
}

fn change(input: &mut Input<'_>, bytes: u64) -> Change {
    let at = if input.once_in(2) { input.below(HANDSHAKE_BYTES) } else { input.below(bytes + 200) };
    let mut put = input.bytes(1);
    let take = match input.below(5) {
        0 => input.short(40) as usize,
        1 => {
            put = input.rest(80);
            0
        }
        2 => {
            mutate::stream(input, &mut put);
            2
        }
        _ => 1,
    };
    Change { at: at as usize, take, put, cut: input.once_in(8) }
}

fn listener() -> &'static TcpListener {
    static LISTENER: OnceLock<TcpListener> = OnceLock::new();
    LISTENER.get_or_init(|| TcpListener::bind("127.0.0.1:0").expect("loopback is there"))
}

/// Two connected sockets.
fn pair() -> (TcpStream, TcpStream) {
    let address = listener().local_addr().expect("it is bound");
    let near = TcpStream::connect(address).expect("loopback is there");
    let (far, from) = listener().accept().expect("just connected");
    assert_eq!(Some(from), near.local_addr().ok(), "cases run one at a time");
    (near, far)
}

/// Carries bytes from one socket to another until either ends.
fn carry(mut from: TcpStream, mut to: TcpStream, change: Option<Change>) {
    let mut offset = 0;
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        let goes_on = change.as_ref().is_none_or(|change| change.apply(offset, &mut bytes));
        offset += count;
        if to.write_all(&bytes).is_err() || !goes_on {
            break;
        }
    }
    // Either may be gone already.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

pub(crate) fn run(input: &mut Input<'_>) {
    let keyed = !input.once_in(4);
    let security = if keyed { Security::Key(Key([9; 32])) } else { Security::None };
    let other = match input.below(12) {
        0 => Security::Key(Key([8; 32])),
        1 => Security::None,
        _ => security.clone(),
    };
    let parts: Vec<usize> = (0..input.below(6))
        .map(|_| *input.pick(&[1, 20, 80, 1000, 8191, 8192, 65_519, 65_520, 100_000]))
        .collect();
    let total: usize = parts.iter().sum();
    let sent: Vec<u8> = (0..total).map(|at| (at ^ at >> 8) as u8).collect();
    let (there, back) = if input.once_in(10) {
        (None, None)
    } else if input.once_in(4) {
        (None, Some(change(input, HANDSHAKE_BYTES)))
    } else {
        (Some(change(input, total as u64)), None)
    };
    let untouched = there.is_none() && back.is_none() && other == security;
    let (near, line_near) = pair();
    let (line_far, far) = pair();
    let copies = (line_near.try_clone(), line_far.try_clone());
    let (Ok(near_copy), Ok(far_copy)) = copies else { panic!("a socket can be copied") };
    let piece = 1 + input.short(100_000) as usize;
    let options = &options(untouched);
    let received = thread::scope(|scope| {
        scope.spawn(move || carry(line_near, line_far, there));
        scope.spawn(move || carry(far_copy, near_copy, back));
        let (sent, parts) = (&sent, &parts);
        scope.spawn(move || {
            let Ok(made) = transport::initiate(near, &security, options) else { return };
            let (mut sender, _receiver) = made.split();
            let mut at = 0;
            for part in parts {
                // The other side may have seen the change already.
                if sender.send(&[&sent[at..at + part]]).is_err() {
                    return;
                }
                at += part;
            }
            let _ = sender.flush();
            sender.closer().shutdown();
        });
        let mut far = match transport::accept(far, &other, options) {
            Ok(made) => made.split().1,
            Err(_) => return None,
        };
        let mut received = Vec::new();
        let mut buffer = vec![0; piece];
        let ended = loop {
            match far.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) => break Err(error),
            }
        };
        far.closer().shutdown();
        Some((received, ended.is_ok()))
    });
    match received {
        None => {
            assert!(!untouched, "an honest handshake failed");
            input.count("no handshake");
        }
        Some((received, ended)) => {
            input.count("connected");
            // The plain line protects nothing; records have their own checksums.
            assert!(!keyed || sent.starts_with(&received), "bytes that were never sent got through");
            assert!(!untouched || (ended && received == sent), "an honest line lost bytes");
        }
    }
}
