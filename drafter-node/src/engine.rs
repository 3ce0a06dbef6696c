//! What a drafter's engine does for a session: draft on order, or decode alone.

use cascadia_core::block::Draft;
use cascadia_core::drafting::Decoded;
use cascadia_core::engine::Rows;
use cascadia_core::ids::TokenId;
use cascadia_core::session::DraftOrder;
use cascadia_core::stepper::{NotFinite, Task};
use cascadia_core::tasks::{DecodeTask, DraftTask};
use cascadia_node::sessions::{BatchInfo, Work};

/// One session's work.
#[derive(Debug)]
pub enum DrafterWork {
    /// Drafts blocks on order.
    Draft(DraftTask),
    /// Decodes alone.
    Decode(DecodeTask),
}

/// What it is told.
#[derive(Debug)]
pub enum DrafterOrder {
    /// Drafts wanted.
    Draft(DraftOrder),
    /// From here on the session decodes alone.
    Alone(Box<DecodeTask>),
}

/// What it answers.
#[derive(Debug)]
pub enum DrafterReply {
    /// The drafts of an order, by its ticket.
    Drafted(u64, Vec<Draft>),
    /// Tokens decoded alone, and whether the text is over.
    Decoded(Vec<Decoded>, bool),
}

impl Task for DrafterWork {
    fn tokens(&self) -> &[TokenId] {
        match self {
            Self::Draft(task) => task.tokens(),
            Self::Decode(task) => task.tokens(),
        }
    }

    fn want(&self) -> Option<usize> {
        match self {
            Self::Draft(task) => task.want(),
            Self::Decode(task) => task.want(),
        }
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        match self {
            Self::Draft(task) => task.take(rows, first),
            Self::Decode(task) => task.take(rows, first),
        }
    }
}

impl Work for DrafterWork {
    type Order = DrafterOrder;
    type Reply = DrafterReply;

    fn order(&mut self, order: DrafterOrder) {
        match (order, self) {
            (DrafterOrder::Draft(order), Self::Draft(task)) => task.order(&order),
            (DrafterOrder::Draft(_), Self::Decode(_)) => {}
            (DrafterOrder::Alone(task), work) => *work = Self::Decode(*task),
        }
    }

    fn drain(&mut self, _hint: BatchInfo) -> Vec<DrafterReply> {
        match self {
            Self::Draft(task) => {
                task.drain().map(|(ticket, drafts)| DrafterReply::Drafted(ticket, drafts)).into_iter().collect()
            }
            Self::Decode(task) => {
                let (decoded, over) = task.drain();
                if decoded.is_empty() && !over { Vec::new() } else { vec![DrafterReply::Decoded(decoded, over)] }
            }
        }
    }
}
