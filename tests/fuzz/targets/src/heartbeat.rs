//! Heartbeat datagrams: two honest sides and somebody between them, with or without the key.

use crate::{Input, mutate};
use mirrorfs_net::config::{Key, Security, Times};
use mirrorfs_net::supervise::Now;
use mirrorfs_net::supervise::heartbeat::{
    DATAGRAM_BYTES, Datagram, HeartbeatConfig, HeartbeatLogic, Ignored, LinkId, MacKey, Side, Verdict,
};
use mirrorfs_net::wire::SessionId;
use std::net::SocketAddr;
use std::time::Duration;

/// Datagrams of one beat at most: the known side and the candidates.
const BEAT_MAX: usize = 16;
const KEY: [u8; 32] = [5; 32];
const FIELDS: [usize; 15] = [0, 4, 5, 6, 8, 16, 24, 32, 48, 56, 64, 72, 80, 88, 96];

struct Player {
    logic: HeartbeatLogic,
    address: SocketAddr,
}

fn player(side: Side, port: u16, boot_id: u64) -> Player {
    let config = HeartbeatConfig {
        side,
        link: LinkId::of_node("node"),
        key: MacKey::derive(&Security::Key(Key(KEY))),
        times: Times::default(),
        boot_id,
    };
    Player { logic: HeartbeatLogic::new(config), address: SocketAddr::from(([127, 0, 0, 1], port)) }
}

/// Makes the MAC right again, from the documented derivation.
fn seal(bytes: &mut [u8]) {
    if bytes.len() != DATAGRAM_BYTES {
        return;
    }
    let key = blake3::derive_key("mirrorfs 2026 heartbeat mac", &KEY);
    let signed = DATAGRAM_BYTES - 32;
    let mac = blake3::keyed_hash(&key, &bytes[..signed]);
    bytes[signed..].copy_from_slice(mac.as_bytes());
}

pub(crate) fn run(input: &mut Input<'_>) {
    let mut local = player(Side::Local, 1, 1 + input.below(1000));
    let mut mirror = player(Side::Mirror, 2, 2000 + input.below(1000));
    local.logic.set_target(mirror.address);
    local.logic.set_session(SessionId(u128::from(input.number())), input.below(65) as u16);
    let stranger = SocketAddr::from(([10, 0, 0, 1], 3));
    let mut now = Now(Duration::from_secs(input.short(1 << 40)));
    let mut recorded: Vec<Vec<u8>> = Vec::new();
    for _ in 0..10 + input.below(40) {
        // Mostly steady; at times a long silence, or none.
        let step = match input.below(8) {
            0 => Duration::ZERO,
            1 => Duration::from_millis(input.short(100_000)),
            2 if input.once_in(50) => Duration::from_secs(input.number() / 4),
            _ => Duration::from_millis(250),
        };
        now = now + step;
        let marks = input.number();
        exchange(input, &mut local, &mut mirror, now, marks, &mut recorded);
        exchange(input, &mut mirror, &mut local, now, marks, &mut recorded);
        let at = if input.once_in(2) { &mut mirror } else { &mut local };
        attack(input, at, stranger, now, &recorded);
        for side in [&local, &mirror] {
            let _figures =
                (side.logic.alive(now), side.logic.silence(now), side.logic.stats(), side.logic.address());
        }
    }
}

/// One tick of `from`; what it sends reaches `to`, or not.
fn exchange(
    input: &mut Input<'_>,
    from: &mut Player,
    to: &mut Player,
    now: Now,
    marks: u64,
    recorded: &mut Vec<Vec<u8>>,
) {
    let mut out = Vec::new();
    from.logic.on_tick(now, marks, &mut out);
    assert!(out.len() <= BEAT_MAX, "{} datagrams in one beat", out.len());
    for (target, bytes) in out {
        let arrives = target == to.address && !input.once_in(10);
        if arrives && matches!(to.logic.on_datagram(&bytes, from.address, now), Verdict::Accepted { .. }) {
            input.count("accepted");
        }
        recorded.push(bytes.to_vec());
    }
}

/// What somebody else sends: changed, without the key or with it, or as recorded.
fn attack(input: &mut Input<'_>, at: &mut Player, from: SocketAddr, now: Now, recorded: &[Vec<u8>]) {
    let mut bytes = match recorded.len() {
        0 => input.rest(200),
        count => recorded[input.index(count)].clone(),
    };
    let honest = bytes.clone();
    if input.once_in(3) {
        mutate::stream(input, &mut bytes);
    } else {
        mutate::fields(input, &mut bytes, &FIELDS, false);
    }
    let has_key = input.once_in(2);
    if has_key {
        seal(&mut bytes);
    }
    let key = MacKey::derive(&Security::Key(Key(KEY)));
    if let Ok(datagram) = Datagram::open(&bytes, &key) {
        input.count("opened");
        assert_eq!(datagram.seal(&key)[..], bytes[..], "not what its bytes say");
    }
    let verdict = at.logic.on_datagram(&bytes, from, now);
    if !has_key && bytes != honest {
        assert_eq!(verdict, Verdict::Ignored(Ignored::NotAuthentic), "forged without the key");
        input.count("forgery seen");
    }
    if has_key && matches!(verdict, Verdict::Accepted { .. }) {
        input.count("accepted with the key");
    }
}
