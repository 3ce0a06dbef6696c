//! Zeroed memory in one mapping, cut into aligned slabs; large pages where the system gives them.

#![allow(unsafe_code)] // Slabs are views into an anonymous mapping that they keep alive.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;

/// Alignment of a slab: a cache line, and an AVX-512 register.
const ALIGN: usize = 64;
/// A large page; the arena starts at one.
const LARGE_PAGE: usize = 2 << 20;

/// Bytes that a slab of `len` values of `T` takes.
pub(crate) fn slab_bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGN)
}

/// Memory of a fixed size, given out from its start.
pub(crate) struct Arena {
    map: Arc<MmapMut>,
    next: usize,
    end: usize,
}

impl Arena {
    /// Maps `bytes` of zeros. Memory is taken when it is first written to.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let slack = if bytes >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let map = MmapMut::map_anon((bytes + slack).max(1))?;
        let start = map.as_ptr() as usize;
        let next = if slack > 0 { start.next_multiple_of(LARGE_PAGE) - start } else { 0 };
        // Without large pages all works as well, with more misses in the address cache.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Arc::new(map), next, end: next + bytes })
    }

    /// The next `len` values, zero. Panics if the arena was made too small.
    pub(crate) fn take<T: Plain>(&mut self, len: usize) -> Slab<T> {
        let bytes = slab_bytes::<T>(len);
        assert!(bytes <= self.end - self.next, "the arena was sized for what is taken from it");
        // SAFETY: within the mapping, by the assertion.
        let ptr = unsafe { self.map.as_ptr().add(self.next) }.cast_mut().cast::<T>();
        self.next += bytes;
        Slab { ptr, len, _map: Arc::clone(&self.map) }
    }
}

/// Types for which zeroed memory is a value.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for f32 {}

/// A slice of an arena, owned: no two overlap.
pub(crate) struct Slab<T: Plain> {
    ptr: *mut T,
    len: usize,
    _map: Arc<MmapMut>,
}

impl<T: Plain> Slab<T> {
    /// The first value. Unlike through [`DerefMut`], what is written through it may be shared between threads.
    pub(crate) fn raw(&self) -> *mut T {
        self.ptr
    }
}

// SAFETY: a slab is an owned slice of plain values.
unsafe impl<T: Plain> Send for Slab<T> {}
// SAFETY: as above; writing through `raw` is the caller's to order.
unsafe impl<T: Plain> Sync for Slab<T> {}

impl<T: Plain> Deref for Slab<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values inside the mapping that `_map` keeps alive.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl<T: Plain> DerefMut for Slab<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and no other slab overlaps this one.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}
