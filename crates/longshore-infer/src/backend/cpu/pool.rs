//! The threads of the engine.
//!
//! Decoding a token is about a hundred calls of some ten microseconds, so what a call costs counts. Measured on 2 threads of
//! a virtual Zen 4 with two tasks of 20 microseconds: rayon added 31 microseconds (its threads sleep between calls), this adds
//! 0.3 to 1. Its threads wait for the next call in a loop for `SPIN` before they sleep, and a thread that wakes up too late
//! for a call is not waited for.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread without work waits before it sleeps.
const SPIN: Duration = Duration::from_micros(100);
/// Looks at the state between two looks at the clock.
const LOOKS: usize = 64;

/// `Shared::state`: how many workers are in the call, whether more may enter, whether the pool ends, and above these the
/// number of the call.
const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const END: u64 = 1 << 17;
const CALL: u64 = 1 << 18;

/// What the threads of a call run.
type Job<'a> = &'a (dyn Fn() + Sync);

struct Shared {
    state: AtomicU64,
    /// Written while nobody is inside and the state is not open; read by workers that are inside.
    job: UnsafeCell<Option<Job<'static>>>,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is only used as its description says, which the orderings of `state` make into happens-before.
unsafe impl Sync for Shared {}
// SAFETY: what `job` refers to is `Sync`.
unsafe impl Send for Shared {}

/// A fixed number of threads. What a task computes never depends on which thread runs it, or on how many there are.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a call.
    calling: Mutex<()>,
    threads: usize,
}

impl Pool {
    /// `threads` threads, at least one: the caller's and new ones.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        // The workers inside are counted in 16 bits.
        let threads = threads.clamp(1, 1 << 15);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        // Filled one by one, so that dropping it ends the threads that did start.
        let mut pool = Self { shared, workers: Vec::new(), calling: Mutex::new(()), threads };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("compute-{i}")).spawn(move || shared.work())?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// How many.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `task(0)` to `task(count - 1)`, each once, in any order. A call from inside a task, or during another thread's
    /// call, runs all of them on its own thread.
    ///
    /// # Panics
    /// With what a task panicked with. Then some tasks may not have run.
    pub fn run(&self, count: usize, task: impl Fn(usize) + Sync) {
        let calling =
            if count > 1 && self.threads > 1 { self.calling.try_lock() } else { return (0..count).for_each(task) };
        let Ok(calling) = calling else { return (0..count).for_each(task) };
        let next = AtomicUsize::new(0);
        let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let job = || {
            let tasks = || {
                loop {
                    // Not above `count` by more than one a thread, so that it cannot wrap.
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        break;
                    }
                    task(i);
                }
            };
            // Nothing of the call is used after a panic but to panic again.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(tasks)) {
                next.store(count, Ordering::Relaxed);
                let mut first = guard(&panic);
                match *first {
                    None => *first = Some(payload),
                    // Dropping it could panic, which a job must not.
                    Some(_) => std::mem::forget(payload),
                }
            }
        };
        self.shared.call(&job);
        drop(calling);
        if let Some(payload) = guard(&panic).take() {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(END, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // A worker cannot panic, since jobs catch.
            let _ = worker.join();
        }
    }
}

/// Locks that protect nothing a panic could leave half done.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Runs `job` here and on the workers that come in time; when it returns, none is inside. `job` must not panic, and
    /// one call is made at a time.
    fn call(&self, job: Job<'_>) {
        // SAFETY: only the lifetime changes. No worker uses the job after this function, which does not unwind: `job`
        // does not panic.
        let job_of_workers: Job<'static> = unsafe { std::mem::transmute(job) };
        // SAFETY: the state is not open and nobody is inside, since the last call ended so, and this is the only one now.
        unsafe { *self.job.get() = Some(job_of_workers) };
        // Both `SeqCst`, here and in `sleep`: either this call sees the sleeper, or the sleeper this call.
        self.state.fetch_add(CALL + OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_sleepers();
        }
        job();
        // `Acquire`: what workers wrote before they left is seen.
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut wait = Wait::default();
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            if wait.is_long() {
                std::thread::yield_now();
            }
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut last = 0;
        let mut wait = Wait::default();
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & END != 0 {
                return;
            }
            let call = state / CALL;
            if call != last && state & OPEN != 0 {
                // `Acquire` on success: the job was written before the state was open.
                if self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    // SAFETY: this worker is inside, so the job is not written, and the call that lent it goes on.
                    if let Some(job) = unsafe { *self.job.get() } {
                        job();
                    }
                    // `Release`: what the job wrote is seen by the call that waits for it.
                    self.state.fetch_sub(1, Ordering::Release);
                    last = call;
                    wait = Wait::default();
                }
            } else if wait.is_long() {
                self.sleep(last);
                wait = Wait::default();
            }
        }
    }

    /// Sleeps until there is a call that is not `last` and still open, or the end.
    fn sleep(&self, last: u64) {
        let mut lock = guard(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state & END != 0 || state & OPEN != 0 && state / CALL != last {
                break;
            }
            lock = self.wake.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        // Not between a sleeper's look at the state and its sleep.
        let _lock = guard(&self.lock);
        self.wake.notify_all();
    }
}

/// A wait that looks at the clock now and then.
#[derive(Default)]
struct Wait {
    looks: usize,
    begin: Option<Instant>,
}

impl Wait {
    /// Pauses for a moment; whether it has been longer than `SPIN`.
    fn is_long(&mut self) -> bool {
        std::hint::spin_loop();
        self.looks += 1;
        if self.looks < LOOKS {
            return false;
        }
        self.looks = 0;
        self.begin.get_or_insert_with(Instant::now).elapsed() > SPIN
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, SPIN};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, Mutex};
    use std::time::{Duration, Instant};

    #[test]
    fn every_task_runs_once() {
        for threads in [0, 1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 3, 100] {
                for _ in 0..200 {
                    let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(count, |i| {
                        runs[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(
                        runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1),
                        "{threads} threads, {count} tasks"
                    );
                }
            }
        }
    }

    #[test]
    fn all_threads_take_part() {
        let pool = Pool::new(3).unwrap();
        for pause in [Duration::ZERO, 3 * SPIN] {
            let begin = Instant::now();
            while begin.elapsed() < pause {
                std::thread::yield_now();
            }
            // Passes only if three threads are in the call at once.
            let barrier = Barrier::new(3);
            pool.run(3, |_| {
                barrier.wait();
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            for bad in 0..20 {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(20, |i| assert!(i != bad, "task {i}"));
                }));
                let payload = result.unwrap_err();
                assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {bad}")));
                let sum = AtomicUsize::new(0);
                pool.run(10, |i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 45);
            }
        }
    }

    #[test]
    fn calls_in_calls_and_from_several_threads_end() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(5, |i| {
                            pool.run(3, |j| {
                                sum.fetch_add(i * j, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 50 * 30);
    }

    #[test]
    fn what_tasks_wrote_is_there_afterwards() {
        let pool = Pool::new(2).unwrap();
        for round in 0..1000 {
            let cells: Vec<_> = (0..8).map(|_| Mutex::new(0)).collect();
            pool.run(8, |i| *cells[i].lock().unwrap() = round);
            assert!(cells.into_iter().all(|cell| cell.into_inner().unwrap() == round));
        }
    }
}
