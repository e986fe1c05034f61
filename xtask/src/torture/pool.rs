//! As many boots at once as the host has cores for.

use std::sync::mpsc;

use crate::process::interrupted;
use crate::qemu::{Engine, Machine};

/// Cores that a boot keeps busy.
#[must_use]
pub fn cores_of(machine: &Machine) -> u32 {
    match machine.engine {
        Engine::Multi | Engine::Kvm => machine.shape.cpus(),
        Engine::Single | Engine::Deterministic { .. } | Engine::Counted => 1,
    }
}

/// Runs jobs, each on so many of the `cores`; one that wants more has them all. The next to begin is the first that fits.
/// `done` hears of each as it ends, with its number. Nothing begins after an interrupt.
pub fn run<T: Send>(weights: &[u32], cores: u32, job: impl Fn(usize) -> T + Sync, mut done: impl FnMut(usize, T)) {
    let weight = |at: usize| weights[at].min(cores);
    let mut waiting: Vec<usize> = (0..weights.len()).collect();
    let mut free = cores;
    let (send, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        while !waiting.is_empty() || free < cores {
            while let Some(next) = waiting.iter().position(|&at| weight(at) <= free).filter(|_| !interrupted()) {
                let at = waiting.remove(next);
                free -= weight(at);
                let (send, job) = (send.clone(), &job);
                // The receiver outlives the scope.
                scope.spawn(move || _ = send.send((at, job(at))));
            }
            if free == cores {
                break;
            }
            let Ok((at, result)) = ended.recv() else { break };
            free += weight(at);
            done(at, result);
        }
    });
}

/// How long jobs of these weights and lengths take.
#[must_use]
pub fn makespan(jobs: &[(u32, f64)], cores: u32) -> f64 {
    let mut waiting: Vec<(u32, f64)> = jobs.iter().map(|&(weight, length)| (weight.min(cores), length)).collect();
    let mut running: Vec<(u32, f64)> = Vec::new();
    let (mut now, mut free) = (0.0, cores);
    loop {
        while let Some(next) = waiting.iter().position(|&(weight, _)| weight <= free) {
            let (weight, length) = waiting.remove(next);
            free -= weight;
            running.push((weight, now + length));
        }
        let Some(first) = (0..running.len()).min_by(|&a, &b| running[a].1.total_cmp(&running[b].1)) else {
            return now;
        };
        let (weight, end) = running.swap_remove(first);
        (now, free) = (end, free + weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::time::Duration;

    #[test]
    fn jobs_never_have_more_cores_than_there_are_and_all_are_done() {
        let weights = [1, 2, 1, 9, 1, 1];
        let (busy, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let mut ended = Vec::new();
        run(
            &weights,
            2,
            |at| {
                let weight = weights[at].min(2);
                most.fetch_max(busy.fetch_add(weight, SeqCst) + weight, SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                busy.fetch_sub(weight, SeqCst);
                at * 10
            },
            |at, result| ended.push((at, result)),
        );
        ended.sort_unstable();
        assert_eq!(ended, (0..6).map(|at| (at, at * 10)).collect::<Vec<_>>());
        assert_eq!(most.into_inner(), 2);
    }

    #[test]
    fn small_jobs_share_the_cores_and_large_ones_have_them_alone() {
        assert_eq!(makespan(&[(1, 3.0), (1, 2.0), (1, 1.0)], 2), 3.0);
        assert_eq!(makespan(&[(1, 3.0), (8, 2.0), (1, 1.0)], 2), 5.0);
        assert_eq!(makespan(&[], 2), 0.0);
    }
}
