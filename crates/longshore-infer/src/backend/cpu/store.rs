//! Buffers that are used again. A layer needs the same sizes as the one before, and asking the system for fresh pages every
//! time shows as page faults in a profile.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that are kept for the next use.
const KEPT: usize = 24;

/// Buffers that are free.
#[derive(Debug, Default)]
pub(super) struct Store<T> {
    free: Mutex<Vec<Vec<T>>>,
}

/// A buffer of some elements, of any content at first; goes back to its store.
#[derive(Debug)]
pub(super) struct Pooled<T> {
    store: Arc<Store<T>>,
    /// At least as long as `len`.
    data: Vec<T>,
    len: usize,
}

/// A buffer of `len` elements.
pub(super) fn take<T: Copy + Default>(store: &Arc<Store<T>>, len: usize) -> Pooled<T> {
    let mut free = store.free.lock().unwrap_or_else(PoisonError::into_inner);
    // The smallest that is large enough, so that a large one is there when it is needed.
    let fitting = free.iter().enumerate().filter(|(_, data)| data.len() >= len).min_by_key(|(_, data)| data.len());
    let found = fitting.map(|(i, _)| i).map(|i| free.swap_remove(i));
    drop(free);
    Pooled { store: Arc::clone(store), data: found.unwrap_or_else(|| vec![T::default(); len]), len }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        let mut free = self.store.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(std::mem::take(&mut self.data));
        if free.len() > KEPT {
            let smallest = free.iter().enumerate().min_by_key(|(_, data)| data.len()).map(|(i, _)| i);
            smallest.map(|i| free.swap_remove(i));
        }
    }
}

impl<T> Deref for Pooled<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T> DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_by_the_next_that_it_fits() {
        let store = Arc::new(Store::default());
        let (small, large) = (take::<f32>(&store, 10), take::<f32>(&store, 100));
        let at = small.as_ptr();
        drop((small, large));
        let again = take(&store, 8);
        assert_eq!((again.as_ptr(), again.len()), (at, 8));
        assert_eq!(take(&store, 50).len(), 50);
        assert_eq!(store.free.lock().unwrap().len(), 1);
    }
}
