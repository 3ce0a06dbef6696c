//! Addresses for processes that are told where to listen.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports that no system draws outgoing connections from: one that is free now is not taken by a client before its process
/// listens, or between two starts of it.
const PORTS: std::ops::Range<u32> = 10_000..30_000;

/// A loopback address that nothing listens on; each call another one.
pub fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let width = PORTS.end - PORTS.start;
    // Test processes that run side by side begin apart.
    let first = std::process::id().wrapping_mul(61) % width;
    let next = || PORTS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % width;
    let mut addresses = (0..width).map(|_| format!("127.0.0.1:{}", next()));
    addresses.find(|address| TcpListener::bind(address).is_ok()).expect("loopback has a free port")
}
