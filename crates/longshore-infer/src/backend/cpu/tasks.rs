//! Parallel work on disjoint parts of buffers.

use super::pool::Pool;

/// A pointer that threads may share: every task makes a reference to another element.
struct Elements<T>(*mut T);

// SAFETY: `each` gives every element to exactly one task, so sharing the pointer sends elements, and they are `Send`.
unsafe impl<T: Send> Sync for Elements<T> {}

impl<T> Elements<T> {
    /// The pointer to element `i`.
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// Runs `work` on every item, each once, in any order and on any thread of the pool.
pub(crate) fn each<T: Send>(pool: &Pool, items: &mut [T], work: impl Fn(&mut T) + Sync) {
    let elements = Elements(items.as_mut_ptr());
    pool.run(items.len(), |i| {
        // SAFETY: i < items.len(), and the pool runs every index once, so no other reference to this element exists.
        work(unsafe { &mut *elements.at(i) });
    });
}

/// Runs `work(first_row, rows)` on blocks of at most `rows_per_task` rows of `width` elements.
pub(crate) fn row_blocks(
    pool: &Pool,
    data: &mut [f32],
    width: usize,
    rows_per_task: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    if width == 0 {
        return;
    }
    let mut blocks: Vec<_> = data.chunks_mut(width * rows_per_task).enumerate().collect();
    each(pool, &mut blocks, |(i, rows)| work(*i * rows_per_task, rows));
}
