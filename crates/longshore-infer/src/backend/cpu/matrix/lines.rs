//! Memory of weights: zeroed pages of their own for large matrices.
//!
//! Pages go back to the system when a matrix is dropped (an allocator keeps tens of megabytes, which a layer that is
//! streamed beside a small budget does not have), come zeroed, and may be huge: 2 MiB pages spare the prefetcher the page
//! borders.

use super::{LANES, Line};
use std::ops::{Deref, DerefMut};

/// Bytes from which on a matrix has pages of its own, and from which on they should be huge.
const OWN_PAGES: usize = 256 << 10;
const HUGE_PAGES: usize = 2 << 20;

/// Lines of weights.
pub(super) enum Lines {
    Allocated(Vec<Line>),
    #[cfg(target_os = "linux")]
    Mapped(Pages),
}

/// An anonymous private mapping.
#[cfg(target_os = "linux")]
pub(super) struct Pages {
    start: std::ptr::NonNull<Line>,
    len: usize,
}

// SAFETY: the pages belong to this value alone, as a boxed slice would.
#[cfg(target_os = "linux")]
unsafe impl Send for Pages {}
// SAFETY: as above; shared references only read.
#[cfg(target_os = "linux")]
unsafe impl Sync for Pages {}

impl Lines {
    /// `len` lines of zeros.
    pub(super) fn zeros(len: usize) -> Self {
        #[cfg(target_os = "linux")]
        if len >= OWN_PAGES / size_of::<Line>()
            && let Some(pages) = Pages::map(len)
        {
            return Self::Mapped(pages);
        }
        Self::Allocated(vec![Line([0; LANES]); len])
    }
}

#[cfg(target_os = "linux")]
impl Pages {
    /// `None` where the system refuses, e.g. because there are too many mappings.
    fn map(len: usize) -> Option<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        let bytes = len.checked_mul(size_of::<Line>())?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint never replaces a mapping that exists.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) }.ok()?;
        if bytes >= HUGE_PAGES {
            // SAFETY: the range is the mapping made above. A hint: refusal changes nothing.
            let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        }
        // Pages begin at multiples of at least 4096, so lines are aligned; zeroed memory is lines of zeros.
        Some(Self { start: std::ptr::NonNull::new(start.cast())?, len })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the whole mapping made by `map`, to which no reference is left. Nothing can be done about a refusal.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len * size_of::<Line>()) };
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Self::Allocated(lines) => lines,
            // SAFETY: `map` made `len` lines of initialized memory, which live as long as `self`.
            #[cfg(target_os = "linux")]
            Self::Mapped(pages) => unsafe { std::slice::from_raw_parts(pages.start.as_ptr(), pages.len) },
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Self::Allocated(lines) => lines,
            // SAFETY: as in `deref`, and `self` is borrowed mutably.
            #[cfg(target_os = "linux")]
            Self::Mapped(pages) => unsafe { std::slice::from_raw_parts_mut(pages.start.as_ptr(), pages.len) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_ones_are_zero_and_can_be_written() {
        for len in [0, 1, OWN_PAGES / 64 - 1, OWN_PAGES / 64, HUGE_PAGES / 64 + 3] {
            let mut lines = Lines::zeros(len);
            assert_eq!(lines.len(), len);
            assert!(lines.iter().all(|line| line.0 == [0; LANES]));
            if let Some(last) = lines.last_mut() {
                last.0[15] = 7;
                assert_eq!(lines[len - 1].0[15], 7);
            }
        }
    }
}
