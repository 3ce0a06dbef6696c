//! A list that the operator wrote: nobody joins, nobody leaves.

use std::sync::Arc;

use cascadia_core::placement::{NodeRecord, Snapshot};
use tokio::sync::watch;

/// The list.
#[derive(Clone, Debug)]
pub(super) struct List(Arc<watch::Sender<Arc<Snapshot>>>);

impl List {
    pub(super) fn new(records: Vec<NodeRecord>) -> Self {
        // A list knows nothing of starts: whoever answers at the address is the node.
        let records = records.into_iter().map(|record| NodeRecord { instance: 0, ..record });
        let nodes = records.map(|record| (record.id.clone(), record)).collect();
        Self(Arc::new(watch::Sender::new(Arc::new(Snapshot { revision: 1, nodes }))))
    }

    pub(super) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}
