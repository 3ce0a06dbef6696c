//! What an expert's engine does for a session: verify a drafter's blocks, or decode alone.

use cascadia_core::block::{Answer, DraftBlock};
use cascadia_core::drafting::Decoded;
use cascadia_core::engine::Rows;
use cascadia_core::ids::TokenId;
use cascadia_core::stepper::{NotFinite, Task};
use cascadia_core::tasks::{DecodeTask, VerifyTask};
use cascadia_node::sessions::{BatchInfo, Work};

/// One session's work.
#[derive(Debug)]
pub enum ExpertWork {
    /// Verifies a drafter's blocks.
    Verify(VerifyTask),
    /// Decodes alone, as the session's owner.
    Decode(DecodeTask),
}

/// What it answers.
#[derive(Debug)]
pub enum ExpertReply {
    /// The answer to the oldest block.
    Answer(Answer, BatchInfo),
    /// Tokens decoded alone, and whether the text is over.
    Decoded(Vec<Decoded>, bool),
}

impl Task for ExpertWork {
    fn tokens(&self) -> &[TokenId] {
        match self {
            Self::Verify(task) => task.tokens(),
            Self::Decode(task) => task.tokens(),
        }
    }

    fn want(&self) -> Option<usize> {
        match self {
            Self::Verify(task) => task.want(),
            Self::Decode(task) => task.want(),
        }
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        match self {
            Self::Verify(task) => task.take(rows, first),
            Self::Decode(task) => task.take(rows, first),
        }
    }
}

impl Work for ExpertWork {
    type Order = DraftBlock;
    type Reply = ExpertReply;

    fn order(&mut self, block: DraftBlock) {
        if let Self::Verify(task) = self {
            task.push(block);
        }
    }

    fn drain(&mut self, hint: BatchInfo) -> Vec<ExpertReply> {
        match self {
            Self::Verify(task) => task.drain().into_iter().map(|answer| ExpertReply::Answer(answer, hint)).collect(),
            Self::Decode(task) => {
                let (decoded, over) = task.drain();
                if decoded.is_empty() && !over { Vec::new() } else { vec![ExpertReply::Decoded(decoded, over)] }
            }
        }
    }
}
