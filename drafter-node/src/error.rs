//! Why a drafter node could not run. What a session is refused with is in `cascadia_node::sessions`.

/// Why a drafter node could not run.
#[derive(Debug, thiserror::Error)]
pub enum DrafterError {
    /// The process around the node failed.
    #[error(transparent)]
    Process(#[from] cascadia_node::process::ProcessError),
    /// The configuration cannot be meant.
    #[error("{0}")]
    Config(String),
    /// The model cannot serve.
    #[error("the model cannot be served: {0}")]
    Model(String),
}
