//! A reader does not sleep, whatever for.

use grange_rcu::read_lock;
use sched::{Completion, JoinHandle, Mutex, sleep_ns};
use sync::MaySleep;

fn thread(cx: &mut MaySleep, mutex: &Mutex<u64>, done: &Completion, other: JoinHandle<()>) {
    let guard = read_lock(cx);
    sleep_ns(cx, 1_000);
    let held = mutex.lock(cx);
    done.wait(cx);
    other.join(cx);
    drop(held);
    drop(guard);
}

fn main() {}
