//! Without a head the call may have to wait for a grace period: not inside of one that waits for the caller (S0-3).

use core::ptr::NonNull;

use grange_kfree_rcu::{kfree_rcu_mightsleep, kfree_rcu_owned_mightsleep, kvfree_rcu_barrier};
use slab::KBox;
use sync::{MaySleep, PreemptGuard};

fn in_a_section(number: KBox<u64>, cx: &mut MaySleep) {
    let section = rcu::read_lock(cx);
    kfree_rcu_owned_mightsleep(number, cx);
    drop(section);
}

fn without_preemption(object: NonNull<u8>, cx: &mut MaySleep) {
    let pin = PreemptGuard::new(cx);
    unsafe { kfree_rcu_mightsleep(object, cx) };
    drop(pin);
}

fn barrier(cx: &mut MaySleep) {
    let section = rcu::read_lock(cx);
    kvfree_rcu_barrier(cx);
    drop(section);
}

fn main() {}
