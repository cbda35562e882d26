//! The dispatcher: on which connections a record travels, and what they are told of barriers. Follows `link::route`.

use super::super::types::{Body, CONNECTIONS_MAX, Defect, Epoch, Frame, Order, Variant};
use super::{Logged, Pipes, Primary, Record, Rules};

/// What the dispatcher knows of the session's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Dispatcher {
    /// The barrier that connection j was last told of.
    mark: [Epoch; CONNECTIONS_MAX],
    /// Bit j: connection j has carried a request since the last barrier.
    dirty: u8,
    /// The last barrier sent.
    sent: Epoch,
}

impl Primary {
    pub(super) fn send(&mut self, record: Record, rules: &Rules, pipes: &mut Pipes) {
        let epoch = record.epoch;
        match record.body {
            Logged::Request { body: body @ Body::Write { block, value }, .. } => {
                let connection = rules.route(self.is_spread(epoch), block, value);
                self.send_request(connection, epoch, body, rules, pipes);
            }
            Logged::Request { body, .. } => match rules.variant {
                Variant::Everywhere => {
                    for connection in 0..rules.connections {
                        self.send_request(connection, epoch, body, rules, pipes);
                    }
                }
                Variant::Lazy => self.send_request(0, epoch, body, rules, pipes),
            },
            Logged::Barrier { chain } => {
                // The first epoch behind what the label said names that as its previous one.
                let chain = match (chain, self.base) {
                    (Some(_), Some(base)) if epoch > base => self.base.take(),
                    (chain, _) => chain,
                };
                self.send_barrier(epoch, chain, rules, pipes);
            }
        }
    }

    /// The choice is made anew for each epoch, and may be another when the epoch is sent again.
    fn is_spread(&self, epoch: Epoch) -> bool {
        let turn = (epoch + u8::from(self.odd_session)) % 4;
        self.spread & (1 << turn) != 0
    }

    fn send_request(
        &mut self,
        connection: usize,
        epoch: Epoch,
        body: Body,
        rules: &Rules,
        pipes: &mut Pipes,
    ) {
        self.send_mark(connection, rules, pipes);
        pipes[connection].push(Frame::Request { epoch, body });
        self.dispatcher.dirty |= 1 << connection;
    }

    fn send_mark(&mut self, connection: usize, rules: &Rules, pipes: &mut Pipes) {
        let Dispatcher { mark, sent, .. } = &mut self.dispatcher;
        if mark[connection] == *sent || rules.broken(Defect::AfterLeftOut) {
            return;
        }
        pipes[connection].push(Frame::After(*sent));
        mark[connection] = *sent;
    }

    fn send_barrier(&mut self, epoch: Epoch, chain: Option<Epoch>, rules: &Rules, pipes: &mut Pipes) {
        let participants = match rules.variant {
            Variant::Everywhere => (1 << rules.connections) - 1,
            Variant::Lazy if self.dispatcher.dirty == 0 => 1,
            Variant::Lazy => self.dispatcher.dirty,
        };
        let predecessor = self.dispatcher.sent;
        let barrier = Frame::Barrier { epoch, chain, participants, predecessor };
        for connection in 0..rules.connections {
            if participants & (1 << connection) == 0 {
                continue;
            }
            if rules.order == Order::Mark && !rules.broken(Defect::PredecessorNotAwaited) {
                self.send_mark(connection, rules, pipes);
            }
            let pipe = &mut pipes[connection];
            let swapped =
                rules.broken(Defect::BarrierSwapped) && matches!(pipe.last(), Some(Frame::Request { .. }));
            pipe.insert(pipe.len() - usize::from(swapped), barrier);
            self.dispatcher.mark[connection] = epoch;
        }
        self.dispatcher.dirty = 0;
        self.dispatcher.sent = epoch;
    }
}
