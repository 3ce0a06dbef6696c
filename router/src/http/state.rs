//! What all requests at the front door share.

use std::sync::Arc;

use crate::http::keys::Keys;
use crate::router::Router;

/// Who serves, whom, and since when.
#[derive(Debug)]
pub struct AppState {
    /// Who serves.
    pub router: Arc<Router>,
    /// Who may ask.
    pub keys: Keys,
    /// When it began to serve, Unix seconds.
    pub since: u64,
}
