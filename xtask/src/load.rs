//! Busy loops on the host: what a run must not depend on, made on purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Threads that compute nothing until this value goes away.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `loops` of them.
    #[must_use]
    pub fn start(loops: u32) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let spin = |over: Arc<AtomicBool>| {
            move || {
                // Relaxed: the flag carries no data with it.
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..loops).map(|_| std::thread::spawn(spin(over.clone()))).collect();
        Load { over, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_run_until_they_are_dropped() {
        let load = Load::start(2);
        assert!(load.threads.iter().all(|thread| !thread.is_finished()));
        let over = load.over.clone();
        drop(load);
        assert_eq!(Arc::strong_count(&over), 1, "both threads are gone");
    }
}
