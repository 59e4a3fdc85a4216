//! Many requests at a time.

use crate::{Client, Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

/// Answers each of `items` with `answer`, as many at a time as the client's settings say, and gives the answers to `take`, in the
/// order in which they come and in the caller's thread. After an error nothing new is begun; what is under way and ends well is
/// still taken.
pub fn ask<T: Send>(
    client: &Client<'_>,
    items: &[usize],
    answer: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(usize, T),
) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let (sender, receiver) = mpsc::channel();
    let work = |sender: mpsc::Sender<(usize, T)>| {
        while !client.stop.is_stopped() {
            let Some(&item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            match answer(item) {
                // Whoever receives outlives this thread.
                Ok(answered) => drop(sender.send((item, answered))),
                Err(Error::Stopped) => return,
                Err(error) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    client.stop.now();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..client.settings.concurrency.min(items.len()) {
            let (sender, work) = (sender.clone(), &work);
            scope.spawn(move || work(sender));
        }
        drop(sender);
        for (item, answered) in receiver {
            take(item, answered);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
