//! An allocator that watches: the largest allocation, and how many bytes are in use.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// More than this at once is refused, which ends the process: it would not fit into the machine.
const REFUSED_BYTES: usize = 4 << 30;

/// The system's allocator, watched. To be the `#[global_allocator]` of what runs targets.
pub struct Watching;

fn grown(bytes: usize) {
    LARGEST.fetch_max(bytes, Relaxed);
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: the system's allocator does all the work; a refusal is a null pointer, as its contract allows.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        grown(layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        grown(layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        grown(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What a target may allocate in one case.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes at once.
    pub largest: usize,
    /// Bytes in use at one time, beyond those in use when the case began.
    pub live: usize,
}

/// Figures since [`begin`].
pub(crate) struct Watch {
    live: usize,
}

/// Begins to watch; one case at a time.
pub(crate) fn begin() -> Watch {
    let live = LIVE.load(Relaxed);
    PEAK.store(live, Relaxed);
    LARGEST.store(0, Relaxed);
    Watch { live }
}

impl Watch {
    /// What went beyond the bounds, in words.
    pub(crate) fn exceeded(&self, bounds: &Bounds) -> Option<String> {
        let (largest, live) = (LARGEST.load(Relaxed), PEAK.load(Relaxed).saturating_sub(self.live));
        if largest > bounds.largest {
            return Some(format!("allocated {largest} bytes at once, at most {} allowed", bounds.largest));
        }
        (live > bounds.live).then(|| format!("{live} bytes in use, at most {} allowed", bounds.live))
    }
}
