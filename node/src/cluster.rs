//! The cluster's name, which keeps clusters apart that meet by accident: an etcd, a list or an address of two.
//!
//! It stands in a node's record and in the first word of every conversation between nodes. Two names mean two clusters:
//! nothing passes between them. No name is that of a release from before there were names; it is let in, and that is said.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use cascadia_core::ids::NodeId;
use cascadia_core::placement::NodeRecord;
use tonic::Status;

/// Most bytes of a name.
const MOST_BYTES: usize = 253;

/// Different sentences that are logged; each is said once.
const MOST_SENTENCES: usize = 64;

/// The name of the cluster that a node belongs to; clones say together what is said once.
#[derive(Clone, Debug)]
pub struct ClusterName {
    name: Arc<str>,
    said: Arc<Mutex<BTreeSet<String>>>,
}

impl Default for ClusterName {
    /// The one of whoever sets none.
    fn default() -> Self {
        Self { name: "default".into(), said: Arc::default() }
    }
}

impl PartialEq for ClusterName {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ClusterName {}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for ClusterName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name.is_empty() || name.len() > MOST_BYTES || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "a cluster's name has 1 to {MOST_BYTES} visible ASCII characters and no spaces, for example production"
            ));
        }
        Ok(Self { name: name.into(), ..Self::default() })
    }
}

impl ClusterName {
    /// Whether a node that says it is of `theirs` belongs here. What is wrong, or old, is logged once.
    ///
    /// # Errors
    /// One sentence that names both clusters and the cure.
    pub fn admits(&self, who: impl fmt::Display, theirs: &str) -> Result<(), String> {
        if theirs == &*self.name {
            return Ok(());
        }
        if theirs.is_empty() {
            self.say_once("", || {
                format!("{who} names no cluster, as older releases do: it is taken for one of \"{self}\"; upgrade it")
            });
            return Ok(());
        }
        // It may say anything.
        let theirs: String = theirs.chars().take(MOST_BYTES).filter(|c| !c.is_control()).collect();
        let sentence = format!(
            "{who} is of the cluster \"{theirs}\" and this node of \"{self}\", so nothing passes between them: give both \
             the same --cluster-name, or each cluster its own --etcd-prefix or static list"
        );
        self.say_once(&sentence, || sentence.clone());
        Err(sentence)
    }

    /// The same as an answer to a node that opens a session: it is to look elsewhere.
    ///
    /// # Errors
    /// `UNAVAILABLE`, with the sentence.
    pub fn admits_session(&self, who: &str, theirs: &str) -> Result<(), Status> {
        self.admits(who, theirs).map_err(Status::unavailable)
    }

    /// Whether the record of a node is of this cluster.
    pub(crate) fn has(&self, node: &NodeId, theirs: &str) -> bool {
        self.admits(format_args!("the node {node} in the member list"), theirs).is_ok()
    }

    /// A node does not let itself be watched from here.
    pub(crate) fn refused_by(&self, node: &NodeRecord, sentence: &str) {
        self.say_once(sentence, || format!("{} at {} gets no sessions from here: {sentence}", node.id, node.address));
    }

    fn say_once(&self, key: &str, sentence: impl FnOnce() -> String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MOST_SENTENCES && said.insert(key.to_owned()) {
            tracing::warn!("{}", sentence());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_are_two_clusters_and_none_is_let_in() {
        let ours: ClusterName = "blue".parse().unwrap();
        assert_eq!(ours.admits("drafter-1", "blue"), Ok(()));
        assert_eq!(ours.admits("drafter-1", ""), Ok(()));
        let sentence = ours.admits("drafter-1", "green").unwrap_err();
        for word in ["drafter-1", "\"blue\"", "\"green\"", "--cluster-name", "--etcd-prefix"] {
            assert!(sentence.contains(word), "{sentence}");
        }
        assert_eq!(ClusterName::default().to_string(), "default");
        assert!(ours.admits("x", &format!("\u{1b}[2J{}", "y".repeat(100_000))).unwrap_err().len() < 1_000);
    }

    #[test]
    fn what_is_said_is_said_once_and_bounded() {
        let ours = ClusterName::default();
        for node in 0..1_000 {
            let _ = ours.clone().admits(node, "");
            let _ = ours.admits(node, "another");
        }
        assert_eq!(ours.said.lock().unwrap().len(), MOST_SENTENCES);
    }

    #[test]
    fn a_name_is_one_word() {
        for good in ["default", "llm/prod", "up-127.0.0.1:50051"] {
            assert_eq!(good.parse::<ClusterName>().unwrap().to_string(), good);
        }
        for bad in ["", "two words", "line\n", "zürich", &"x".repeat(254)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }
}
