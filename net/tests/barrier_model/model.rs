//! The whole as a `stateright` model: which steps there are from a state, and what must hold in each.
//!
//! Steps that can't be told apart are one. A frame is in its pipe as soon as its record is in the log of a begun session:
//! one that was never sent and one that was never read are lost alike. Sync, label and answer of a barrier are one step:
//! a power cut between them leaves what it may also leave before or behind. Every number of steps taken grows, so that
//! the states form no cycle and each path ends.

use super::history::History;
use super::peer::{Answer, CrashOfPeer, Mirror, Session};
use super::primary::{CrashOfPrimary, Pipes, Primary, Rules};
use super::types::{Defect, Item, Value};
use stateright::{Model, Property};

/// How often each fault may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    pub(crate) breaks: u8,
    pub(crate) peer_crashes: u8,
    pub(crate) primary_crashes: u8,
}

/// What is checked.
#[derive(Clone, Debug)]
pub(crate) struct Barriers {
    pub(crate) rules: Rules,
    pub(crate) scripts: Vec<Vec<Item>>,
    /// See [`Primary::new`]: each by itself.
    pub(crate) spreads: &'static [u8],
    pub(crate) faults: Faults,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    script: u8,
    /// Steps of the script done.
    done: u8,
    faults: Faults,
    primary: Primary,
    /// Frames of the running session.
    pipes: Pipes,
    session: Session,
    /// A write of an older session that is still to come: only with the defect that lets it.
    stray: Option<(u8, Value)>,
    mirror: Mirror,
    history: History,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Script,
    Connect,
    Apply(u8),
    Complete,
    GoOn,
    Hear(Answer),
    /// The peer's side of the session is over, and a thread of it is in a write.
    PeerEnds(Option<u8>),
    PrimaryEnds,
    LateWrite,
    StrayWrite,
    PeerCrashes(CrashOfPeer),
    PrimaryCrashes(CrashOfPrimary),
}

impl Barriers {
    fn script(&self, state: &State) -> &[Item] {
        &self.scripts[usize::from(state.script)]
    }

    /// What goes on without any fault.
    fn progress(&self, state: &State, actions: &mut Vec<Action>) {
        let session = &state.session;
        if usize::from(state.done) < self.script(state).len() {
            actions.push(Action::Script);
        }
        let may_connect =
            session.finished() || (session.over && self.rules.broken(Defect::OldSessionApplies));
        if !state.primary.live && may_connect {
            actions.push(Action::Connect);
        }
        if !session.over {
            for connection in (0_u8..).take(self.rules.connections) {
                if Session::can_apply(usize::from(connection), &state.pipes) {
                    actions.push(Action::Apply(connection));
                }
            }
            if session.complete_at(&state.pipes, &self.rules).is_some() {
                actions.push(Action::Complete);
            }
        }
        if session.is_completing() {
            actions.push(Action::GoOn);
        }
        if session.is_late() {
            actions.push(Action::LateWrite);
        }
        if state.stray.is_some() {
            actions.push(Action::StrayWrite);
        }
        if state.primary.live {
            actions.extend(session.answers.iter().map(|answer| Action::Hear(*answer)));
        }
        // Once one side's session is over, the other's will be.
        if session.over && state.primary.live {
            actions.push(Action::PrimaryEnds);
        }
        if !session.over && !state.primary.live {
            self.peer_ends(state, actions);
        }
    }

    fn peer_ends(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::PeerEnds(None));
        for connection in (0_u8..).take(self.rules.connections) {
            if state.session.may_be_late(usize::from(connection), &state.pipes, &state.mirror) {
                actions.push(Action::PeerEnds(Some(connection)));
            }
        }
    }

    fn faults(&self, state: &State, actions: &mut Vec<Action>) {
        if state.faults.breaks > 0 && state.primary.live && !state.session.over {
            actions.push(Action::PrimaryEnds);
            self.peer_ends(state, actions);
        }
        if state.faults.peer_crashes > 0 {
            actions.extend(state.mirror.crashes().into_iter().map(Action::PeerCrashes));
        }
        if state.faults.primary_crashes > 0 {
            actions.extend(state.primary.crashes().into_iter().map(Action::PrimaryCrashes));
        }
    }
}

impl Model for Barriers {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let scripts = (0_u8..).take(self.scripts.len());
        scripts
            .flat_map(|script| self.spreads.iter().map(move |spread| (script, *spread)))
            .map(|(script, spread)| State {
                script,
                done: 0,
                faults: self.faults,
                primary: Primary::new(spread),
                pipes: Pipes::default(),
                session: Session::none(),
                stray: None,
                mirror: Mirror::new(),
                history: History::new(),
            })
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.progress(state, actions);
        self.faults(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let rules = &self.rules;
        let State { faults, primary, pipes, session, stray, mirror, history, .. } = &mut state;
        match action {
            Action::Script => {
                match self.script(last)[usize::from(last.done)] {
                    Item::Write { block, value } => primary.write(block, value, rules, pipes, history),
                    Item::Barrier => primary.flush(rules, pipes, history),
                    Item::Hollow => primary.hollow(rules, pipes, history),
                }
                state.done += 1;
            }
            Action::Connect => {
                if let Some(late) = session.take_late() {
                    *stray = Some(late);
                }
                *session = Session::open(primary.durable(), mirror);
                *pipes = Pipes::default();
                let gather = primary.begin(mirror.label, rules, pipes, history);
                session.begin(gather);
            }
            Action::Apply(connection) => {
                session.apply(usize::from(connection), pipes, mirror, rules, history);
            }
            Action::Complete => {
                let barrier = session.complete_at(pipes, rules)?;
                session.complete(barrier, pipes, mirror, rules, history);
            }
            Action::GoOn => session.go_on(pipes, mirror, rules),
            Action::Hear(answer) => {
                session.answers.retain(|other| *other != answer);
                match answer {
                    Answer::Durable(epoch) => primary.hear_durable(epoch, rules, pipes, history),
                    Answer::Applied(epoch, block, value) => {
                        let body = super::types::Body::Write { block, value };
                        primary.hear_applied(epoch, body, rules, history);
                    }
                }
            }
            Action::PeerEnds(late) => {
                if primary.live {
                    faults.breaks -= 1;
                }
                session.end(late.map(usize::from), pipes);
            }
            Action::PrimaryEnds => {
                if !session.over {
                    faults.breaks -= 1;
                }
                primary.end();
            }
            Action::LateWrite => session.write_late(mirror),
            Action::StrayWrite => {
                let (block, value) = stray.take()?;
                mirror.write(block, value);
            }
            Action::PeerCrashes(crash) => {
                faults.peer_crashes -= 1;
                mirror.crash(&crash);
                *stray = None;
                session.crash();
                *pipes = Pipes::default();
            }
            Action::PrimaryCrashes(crash) => {
                faults.primary_crashes -= 1;
                primary.crash(&crash, rules, history);
            }
        }
        if state.session.over {
            // Nobody reads what is sent.
            state.pipes = Pipes::default();
        } else {
            state.session.pass_marks(&mut state.pipes, &mut state.history);
        }
        if !state.primary.live {
            state.session.answers.clear();
        }
        let History { heard, let_go, .. } = state.history;
        state.history.forget_before(heard.max(let_go).min(state.mirror.label_at_least()));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(CONSISTENT, |_, state: &State| each_crash(state, |crash| crash.label.epoch)),
            Property::always(DURABLE, |_, state: &State| each_crash(state, |_| state.history.heard)),
            Property::always(RETIRED, |_, state: &State| each_crash(state, |_| state.history.let_go)),
            Property::always(ACCEPTED, |_, state: &State| state.history.refused.is_none()),
            Property::always(GOES_ON, |_, state: &State| !state.history.whole),
            Property::always(CONVERGES, |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.progress(state, &mut actions);
                !actions.is_empty() || state.converged()
            }),
        ]
    }
}

/// After any power cut the mirror is a state that the primary was in, and not an older one than its label says.
pub(crate) const CONSISTENT: &str = "consistent";
/// An epoch that the primary heard to be durable is there after any power cut.
pub(crate) const DURABLE: &str = "durable";
/// So is an epoch of which the log has let something go.
pub(crate) const RETIRED: &str = "retired";
/// The peer never has to refuse a frame.
pub(crate) const ACCEPTED: &str = "accepted";
/// The log always knows how to go on from what the label says, without sending everything again.
pub(crate) const GOES_ON: &str = "goes on";
/// When the faults end both images become equal, and nothing waits for ever.
pub(crate) const CONVERGES: &str = "converges";

fn each_crash(state: &State, from: impl Fn(&CrashOfPeer) -> u8) -> bool {
    // During a resync the label makes no claim.
    state
        .mirror
        .crashes()
        .iter()
        .all(|crash| crash.label.resyncing || state.history.holds(&crash.image, from(crash)))
}

impl State {
    fn converged(&self) -> bool {
        self.primary.live
            && self.primary.at_rest()
            && self.mirror.image == self.primary.image
            && !self.mirror.label.resyncing
            && self.pipes.iter().all(Vec::is_empty)
    }
}
