//! The allocator under random calls of every kind, from all CPUs: each object is filled with a pattern of its own, which whoever
//! frees it finds undamaged, wherever that is; at the end every object, slab and sheaf is accounted for.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use arch::{CpuId, cpu};
use sched::Prio;
use sync::Rng;

use crate::run::Test;
use crate::yard::{SLOTS, Yard};
use crate::{Failure, ensure_eq, ktest, skip};

/// Random calls on every CPU at once.
fn on_all_cpus(t: &mut Test<'_>, calls: usize) -> Result<(), Failure> {
    let yard = Yard::new()?;
    let mut threads = Vec::new();
    for on in cpu::online().iter() {
        let (yard, mut rng) = (yard.clone(), Rng::new(t.rng.next_u64()));
        let thread = sched::spawn(t.cx, "random", Prio::NORMAL, Some(on), move |cx| {
            let mut sheaf = None;
            for _ in 0..calls {
                yard.play(&mut sheaf, &mut rng);
                // Where one host thread runs all CPUs, this is where another one gets its turn.
                if rng.chance(1, 8) {
                    arch::irq::relax();
                }
                sched::cond_resched(cx);
            }
        });
        threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
    }
    threads.into_iter().for_each(|thread| thread.join(t.cx));
    let mut rng = Rng::new(t.rng.next_u64());
    let refused = yard.refused();
    t.note(format_args!("{refused} calls found no memory, or busy locks that they may not wait for"));
    yard.close(t.cx, &mut rng)
}

/// One CPU only allocates and another only frees, so every object has to find its way back.
fn from_cpu_to_cpu(t: &mut Test<'_>, producer: CpuId, consumer: CpuId) -> Result<(), Failure> {
    const OBJECTS: u64 = 6_000;
    let yard = Yard::new()?;
    let over = Arc::new(AtomicBool::new(false));
    let (theirs, done, mut rng) = (yard.clone(), over.clone(), Rng::new(t.rng.next_u64()));
    let user = sched::spawn(t.cx, "consumer", Prio::NORMAL, Some(consumer), move |cx| {
        let mut used = 0;
        loop {
            // Read before the look into the slots: once it is set, what is there is all there will be.
            let last = done.load(SeqCst);
            let found = (0..SLOTS)
                .filter_map(|slot| theirs.exchange(slot, None))
                .map(|held| theirs.free(held, &mut rng))
                .count();
            used += found as u64;
            if last && found == 0 {
                return used;
            }
            arch::irq::relax();
            sched::cond_resched(cx);
        }
    });
    let user = user.map_err(|error| crate::__failed!("{error}"))?;
    let (ours, mut rng) = (yard.clone(), Rng::new(t.rng.next_u64()));
    let maker = sched::spawn(t.cx, "producer", Prio::NORMAL, Some(producer), move |cx| {
        let mut made = 0;
        let mut sheaf = None;
        while made < OBJECTS {
            for slot in 0..SLOTS {
                if ours.is_vacant(slot)
                    && let Some(held) = ours.allocate(&mut sheaf, &mut rng)
                {
                    // Only we put anything there.
                    ours.exchange(slot, Some(held));
                    made += 1;
                }
            }
            arch::irq::relax();
            sched::cond_resched(cx);
        }
        made
    });
    let maker = maker.map_err(|error| crate::__failed!("{error}"));
    let made = maker.map(|maker| maker.join(t.cx));
    over.store(true, SeqCst);
    let used = user.join(t.cx);
    ensure_eq!(made?, used, "objects made and used up");
    let mut rng = Rng::new(t.rng.next_u64());
    yard.close(t.cx, &mut rng)
}

/// Two CPUs that are on the same node, or are not.
fn pair(same_node: bool) -> Option<(CpuId, CpuId)> {
    let all = || cpu::online().iter();
    all()
        .flat_map(|one| all().map(move |other| (one, other)))
        .find(|&(one, other)| one != other && (cpu::node_of(one) == cpu::node_of(other)) == same_node)
}

ktest! {
    /// Single and bulk calls, prefilled sheaves, kmalloc and the nolock calls, each object freed by whoever meets it.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn random_calls_of_every_kind_never_hand_out_an_object_twice(t: &mut Test) {
        on_all_cpus(t, 1_500)
    }

    /// The same for longer.
    #[tags(race, slow)]
    #[budget_ms(600_000)]
    fn random_calls_of_every_kind_for_minutes(t: &mut Test) {
        on_all_cpus(t, 100_000)
    }

    /// A producer and a consumer whose sheaves meet in one barn.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn what_one_cpu_makes_another_of_its_node_uses_up(t: &mut Test) {
        let Some((producer, consumer)) = pair(true) else { skip!("needs two CPUs on one node") };
        from_cpu_to_cpu(t, producer, consumer)
    }

    /// A producer and a consumer on two nodes: every free is of another node's object.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn what_one_node_makes_another_uses_up(t: &mut Test) {
        let Some((producer, consumer)) = pair(false) else { skip!("needs CPUs on two nodes") };
        from_cpu_to_cpu(t, producer, consumer)
    }
}
