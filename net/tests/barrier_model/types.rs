//! What the parts of the model speak about: contents, requests, frames, and what is being checked.

/// Blocks of the one LUN. Each lies in a region of its own.
pub(crate) const BLOCKS: usize = 3;
/// Connections at most.
pub(crate) const CONNECTIONS_MAX: usize = 3;

/// Number of an epoch: the incarnation in the upper four bits, a counter below. 0 is none.
pub(crate) type Epoch = u8;
/// What a block holds: the number of the script's write that put it there; 0 at the start.
pub(crate) type Value = u8;
/// An image, block by block.
pub(crate) type Image = [Value; BLOCKS];
/// What each block may hold: bit v stands for value v.
pub(crate) type Possible = [u16; BLOCKS];

/// First epoch of an incarnation.
pub(crate) const fn first_epoch(incarnation: u8) -> Epoch {
    (incarnation << 4) + 1
}

/// Epoch at which both images are equal at the start: of an earlier incarnation.
pub(crate) const START: Epoch = 8;

/// Each block holds exactly this.
pub(crate) fn exactly(image: &Image) -> Possible {
    image.map(|value| 1 << value)
}

/// Every image that takes from each block one of the contents it may hold.
pub(crate) fn images(possible: &Possible) -> Vec<Image> {
    let mut all = vec![[0; BLOCKS]];
    for (block, &values) in possible.iter().enumerate() {
        let choices = (0..16_u8).filter(|value| values & (1 << value) != 0);
        all = choices
            .flat_map(|value| {
                all.iter().map(move |image| {
                    let mut image = *image;
                    image[block] = value;
                    image
                })
            })
            .collect();
    }
    all
}

/// A request but for its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Body {
    Write { block: u8, value: Value },
    ResyncBegin,
    ResyncEnd,
}

/// What a connection carries to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    Request {
        epoch: Epoch,
        body: Body,
    },
    Barrier {
        epoch: Epoch,
        /// The LUN's epoch before, if it has requests in this one.
        chain: Option<Epoch>,
        /// Bit j: connection j is part of it.
        participants: u8,
        /// The barrier before in this session, 0 if there is none.
        predecessor: Epoch,
    },
    /// Nothing that follows may be applied before this barrier is complete.
    After(Epoch),
}

/// On which connections a barrier is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// On all.
    Everywhere,
    /// On those that carried a request since the barrier before.
    Lazy,
}

impl Variant {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Everywhere => 'A',
            Self::Lazy => 'B',
        }
    }
}

/// How a lazy barrier is kept behind the one before it, on a connection that has not been told of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// An `After` goes ahead of a barrier as of a request.
    Mark,
    /// The barrier names its predecessor and waits for it.
    Predecessor,
}

/// A rule broken on purpose: the checker must find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// A barrier is overtaken by the last request in front of it.
    BarrierSwapped,
    /// `durable` is answered, then the image is synced.
    DurableBeforeSync,
    /// The label is written, then the image is synced.
    LabelBeforeSync,
    /// Requests of one block travel on different connections.
    OverlapOnTwoConnections,
    /// A record leaves the log when the peer has applied it.
    RetiredAtApplied,
    /// A greeting is answered before the old session's last write has ended.
    OldSessionApplies,
    /// The incarnation is not raised after a crash of the primary.
    EpochReused,
    /// What a crash of the primary cut off the queue is not marked for the resync.
    CutNotMarked,
    /// No `After` is sent.
    AfterLeftOut,
    /// A barrier waits for the one before it only where its connection carried a request.
    PredecessorNotAwaited,
    /// The first epoch that is sent again is applied as it comes.
    GatherLeftOut,
    /// A label one epoch behind what was heard to be durable is not known for what it is.
    LabelBehindRefused,
    /// A label that a power cut had set back is left there at the first barrier: after a second one it is two epochs behind.
    LabelLeftBehind,
}

/// A step of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Write {
        block: u8,
        value: Value,
    },
    /// A flush: closes the epoch.
    Barrier,
    /// An epoch of which nothing is left but its barrier, as a resync that was broken off leaves it.
    Hollow,
}
