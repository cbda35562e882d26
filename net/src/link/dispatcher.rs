//! From the log to the lanes: by the dispatcher thread, or by a thread that is going to wait for what it appended.

use super::lane::Item;
use super::session::Session;
use crate::supervise::link_state::EndReason;
use crate::wire::Lanes;
use mirrorfs_journal::log::{Next, Pump};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest wait for a record; bounds how late the end of the session or a stop is noticed.
const NEXT_WAIT: Duration = Duration::from_millis(50);
/// Records that one call of a pump dispatches at most; the dispatcher has the rest.
const PUMPED_MAX: usize = 64;

/// Takes from the log; gives to the lanes; may block on a full lane; ends with the session. It holds the router, which
/// makes it the log's only reader, while it dispatches, not while it waits.
pub(super) fn run(session: &Arc<Session>) {
    if !session.wait_begun() {
        return;
    }
    let log = &session.shared.log;
    log.set_pump(Some(session.pump()));
    'session: while !session.is_over() && !session.goodbye_wanted() {
        if !log.wait_next(NEXT_WAIT) {
            continue;
        }
        let mut router = session.router.lock();
        loop {
            if session.is_over() || session.goodbye_wanted() {
                break;
            }
            match log.next(Duration::ZERO) {
                Next::Request(record) => {
                    session.sending();
                    let mut pushed = true;
                    router.route(&record, session.outstanding(), |index, routed| {
                        pushed &= session.lanes[index].push(Item::Routed(routed));
                    });
                    if !pushed {
                        break 'session;
                    }
                }
                Next::Idle => break,
                Next::Ended => {
                    session
                        .want_goodbye(EndReason::Connection("the mirror log ended the session".to_owned()));
                }
            }
        }
    }
    log.set_pump(None);
    // Nothing follows a goodbye, from a pump under way neither.
    let _router = session.router.lock();
    for lane in &session.lanes {
        lane.push(Item::Goodbye);
    }
}

impl Pump for Session {
    /// May be called by any thread, also by several; blocks on nothing.
    fn pump(&self) {
        let log = &self.shared.log;
        let mut filled = Lanes::default();
        let mut left = PUMPED_MAX;
        loop {
            self.pump_wanted.store(true, Ordering::SeqCst);
            // Whoever has it looks again: a pump at the flag, the dispatcher at the log.
            let Some(mut router) = self.router.try_lock() else { break };
            self.pump_wanted.store(false, Ordering::SeqCst);
            while left > 0
                && !self.is_over()
                && !self.goodbye_wanted()
                && let Some(Next::Request(record)) = log.next_in_memory()
            {
                left -= 1;
                self.sending();
                router.route(&record, self.outstanding(), |index, routed| {
                    self.lanes[index].push_now(Item::Routed(routed));
                    filled = filled.with(index);
                });
            }
            drop(router);
            if left == 0 {
                log.wake_dispatcher();
                break;
            }
            if !self.pump_wanted.load(Ordering::SeqCst) {
                break;
            }
        }
        for (index, lane) in self.lanes.iter().enumerate().filter(|(index, _)| filled.contains(*index)) {
            match lane.send_now() {
                Ok(bytes) => self.shared.count_sent(bytes),
                Err(error) => self.fail(super::worker::broken(index, &error)),
            }
        }
    }

    /// Quiet epochs travel on connection 0, and only there is it worth staying awake.
    fn receive(&self) -> bool {
        self.incoming[0].look(self)
    }

    fn leave(&self) {
        self.incoming[0].leave();
    }
}
