//! Addresses for processes that are told where to listen.

/// A loopback address that nothing listens on; each call another one.
pub fn free_address() -> String {
    cascadia_node::net::free_address().expect("loopback has a free port")
}
