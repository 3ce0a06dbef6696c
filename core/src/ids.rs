//! Names of things: tokens, sessions, nodes, epochs, pages.

use std::fmt;

/// Index of a token in the vocabulary.
pub type TokenId = u32;

/// 128 random bits minted by the router at admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u128);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// 128 random bits that the router minted beside a session's name: whoever shows them may take the session over.
///
/// It is shown nowhere but in the opening of a session: not in logs, traces or errors. It is no `PartialEq`, so that nobody
/// compares it in a time that tells how much of a guess was right.
#[derive(Clone)]
pub struct SessionSecret([u8; Self::BYTES]);

impl SessionSecret {
    /// Its length.
    pub const BYTES: usize = 16;

    /// The secret of these bits.
    #[must_use]
    pub fn new(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }

    /// The secret as it travels.
    #[must_use]
    pub fn of_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// As it travels, and as it is compared.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

/// A node's name in membership, unique while it lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A session's placement and move counter, `(placement << 32) + moves`; fences stale replies.
///
/// The router raises the placement each time it places the session on an owner; the owner raises the moves each time it
/// opens a `Verify` stream. The order of the numbers is the order of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first epoch of a placement.
    #[must_use]
    pub fn of_placement(placement: u32) -> Self {
        Self(u64::from(placement) << 32)
    }

    /// How often the router has placed the session.
    #[must_use]
    pub fn placement(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The next move within the same placement. The last of all epochs has none: whatever it opens then is stale.
    #[must_use]
    pub fn moved(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Index of a KV page in a node's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

impl PageId {
    /// The page's index in the pool.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
