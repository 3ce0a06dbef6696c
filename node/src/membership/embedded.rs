//! A registry inside one process, for `cascadia up` and tests.

use std::sync::Arc;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, Snapshot};
use tokio::sync::watch;

/// The registry; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Registry(Arc<watch::Sender<Arc<Snapshot>>>);

impl Registry {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }

    pub(super) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }

    pub(super) fn register(&self, record: NodeRecord) -> Entry {
        let entry = Entry { registry: self.clone(), id: record.id.clone(), instance: record.instance };
        self.change(|snapshot| snapshot.nodes.insert(record.id.clone(), record));
        entry
    }

    fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) {
        self.0.send_modify(|snapshot| {
            let snapshot = Arc::make_mut(snapshot);
            snapshot.revision += 1;
            change(snapshot);
        });
    }
}

/// One start of a node in the registry; dropping it takes the node out, as its process would be seen to end.
#[derive(Debug)]
pub(super) struct Entry {
    registry: Registry,
    id: NodeId,
    instance: u64,
}

impl Entry {
    pub(super) fn update(&self, record: NodeRecord) {
        if self.is_current() {
            self.registry.change(|snapshot| snapshot.nodes.insert(record.id.clone(), record));
        }
    }

    /// Whether no later start of the node has taken the name.
    fn is_current(&self) -> bool {
        self.registry.0.borrow().nodes.get(&self.id).is_some_and(|record| record.instance == self.instance)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_current() {
            self.registry.change(|snapshot| snapshot.nodes.remove(&self.id));
        }
    }
}
