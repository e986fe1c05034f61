//! RCU while CPUs go and come: grace periods pass, readers hold them up, every callback runs.
//!
//! Whether a reader ever outlasts a grace period meanwhile is a matter for the pipe: see `rcu_torture`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::{CpuId, cpu};
use rcu::{CallbackHead, call_rcu, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, Rng};

use crate::together::BoostDelay;
use crate::toggle::{Load, MS, off, on, others, spawn, threads, toggle_all};
use crate::{Failure, ensure, ensure_eq, ktest};

/// Callbacks queued and run.
#[derive(Default)]
struct Tally {
    queued: AtomicU64,
    ran: AtomicU64,
}

impl Tally {
    fn queue(self: &Arc<Tally>) {
        #[repr(C)]
        struct Counted {
            head: CallbackHead,
            tally: Arc<Tally>,
        }
        /// # Safety
        /// `head` is that of a `Counted` that was leaked to the callback.
        unsafe fn count(head: *mut CallbackHead) {
            // SAFETY: by the caller; the head is the first field.
            let counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
            counted.tally.ran.fetch_add(1, Relaxed);
        }
        self.queued.fetch_add(1, Relaxed);
        let counted = Box::new(Counted { head: CallbackHead::new(), tally: self.clone() });
        // SAFETY: leaked to the callback.
        unsafe { call_rcu(Box::into_raw(counted).cast(), count) };
    }

    fn waiting(&self) -> u64 {
        // In this order: none is run that is not counted as queued.
        let ran = self.ran.load(SeqCst);
        self.queued.load(SeqCst) - ran
    }
}

/// What RCU says about `cpu`.
fn said_of(cpu: CpuId) -> rcu::CpuStats {
    rcu::cpu_stats().find(|stats| stats.cpu == cpu).expect("a CPU of the machine")
}

fn ensure_is_out(cpu: CpuId, cx: &mut MaySleep) -> Result<(), Failure> {
    // An NMI may come at any time; nothing else makes RCU watch the CPU.
    let said = said_of(cpu);
    ensure!(!said.online && !said.watched && said.callbacks == 0, "CPU {cpu} is gone, but RCU says {said:?}");
    synchronize_rcu(cx);
    synchronize_rcu_expedited(cx);
    ensure!(rcu::node_stats().all(|node| node.qsmask == 0 || node.online != 0), "a leaf without CPUs is waited for");
    Ok(())
}

ktest! {
    /// In each segment of the list: done, tagged, and just queued. None may be lost, and a barrier that begins after, or is under
    /// way, waits for all.
    fn callbacks_of_a_cpu_that_goes_run_elsewhere(t: &mut Test) {
        const EACH: u64 = 100;
        for cpu in others(t.cx)? {
            for barriers in [0, 1] {
                let tally = Arc::<Tally>::default();
                let theirs = tally.clone();
                let queuer = spawn(t.cx, Some(cpu), move |cx| {
                    for _ in 0..EACH {
                        theirs.queue();
                    }
                    // Some ticks, so that these are tagged and those of the first round perhaps done.
                    sched::sleep_ns(cx, 10 * MS);
                    let _irqs = IrqGuard::new(cx);
                    for _ in 0..EACH {
                        theirs.queue();
                    }
                })?;
                queuer.join(t.cx);
                let mut waiters = alloc::vec::Vec::new();
                for _ in 0..barriers {
                    let theirs = tally.clone();
                    waiters.push(spawn(t.cx, None, move |cx| {
                        rcu_barrier(cx);
                        theirs.waiting()
                    })?);
                }
                off(cpu, t.cx)?;
                let said = said_of(cpu);
                ensure_eq!(said.callbacks, 0, "{said:?}");
                for waiter in waiters {
                    ensure_eq!(waiter.join(t.cx), 0, "a barrier returned before callbacks ran");
                }
                rcu_barrier(t.cx);
                ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
                ensure_is_out(cpu, t.cx)?;
                on(cpu, t.cx)?;
                ensure!(said_of(cpu).online, "CPU {cpu} is back, but RCU says {:?}", said_of(cpu));
            }
        }
        Ok(())
    }

    /// Callbacks that moved run by themselves, on a machine that has nothing else to do.
    fn callbacks_that_moved_need_no_barrier(t: &mut Test) {
        for cpu in others(t.cx)? {
            let tally = Arc::<Tally>::default();
            let theirs = tally.clone();
            spawn(t.cx, Some(cpu), move |_| {
                let _pin = PreemptGuard::new(ATOMIC);
                (0..10).for_each(|_| theirs.queue());
            })?
            .join(t.cx);
            off(cpu, t.cx)?;
            for _ in 0..2000 {
                if tally.waiting() == 0 {
                    break;
                }
                sched::sleep_ns(t.cx, 10 * MS);
            }
            on(cpu, t.cx)?;
            ensure_eq!(tally.waiting(), 0, "callbacks were left behind");
        }
        Ok(())
    }

    /// A reader that a CPU's leaving takes its CPU from goes on elsewhere, and both kinds of grace period wait for it.
    fn a_reader_from_a_cpu_that_went_holds_grace_periods_up(t: &mut Test) {
        let _unboosted = BoostDelay::new(0);
        for cpu in others(t.cx)? {
            let state = Arc::new((AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false)));
            let theirs = state.clone();
            let reader = spawn(t.cx, Some(cpu), move |_| {
                let guard = read_lock(ATOMIC);
                theirs.0.store(true, SeqCst);
                while !theirs.1.load(SeqCst) {
                    arch::irq::relax();
                }
                theirs.2.store(true, SeqCst);
                drop(guard);
            })?;
            while !state.0.load(SeqCst) {
                sched::sleep_ns(t.cx, MS);
            }
            let wait: [fn(&mut MaySleep); 2] = [synchronize_rcu, synchronize_rcu_expedited];
            let mut waiters = alloc::vec::Vec::new();
            for wait in wait {
                let theirs = state.clone();
                waiters.push(spawn(t.cx, None, move |cx| {
                    wait(cx);
                    theirs.2.load(SeqCst)
                })?);
            }
            off(cpu, t.cx)?;
            for wait in wait {
                let theirs = state.clone();
                waiters.push(spawn(t.cx, None, move |cx| {
                    wait(cx);
                    theirs.2.load(SeqCst)
                })?);
            }
            sched::sleep_ns(t.cx, 20 * MS);
            state.1.store(true, SeqCst);
            for waiter in waiters {
                ensure!(waiter.join(t.cx), "a grace period ended although a reader from before was in its section");
            }
            reader.join(t.cx);
            on(cpu, t.cx)?;
        }
        Ok(())
    }

    /// All CPUs but one, then those of one node: everything still works with what is left, and with all of them back.
    fn grace_periods_pass_with_one_cpu_left_and_with_a_node_gone(t: &mut Test) {
        let all = others(t.cx)?;
        let node = |cpu: CpuId| cpu::node_of(cpu);
        let far = all.iter().copied().filter(|&cpu| node(cpu) != node(CpuId::BOOT)).collect();
        for gone in [all, far] {
            for &cpu in &gone {
                off(cpu, t.cx)?;
            }
            let tally = Arc::<Tally>::default();
            (0..100).for_each(|_| tally.queue());
            for &cpu in &gone {
                ensure_is_out(cpu, t.cx)?;
            }
            rcu_barrier(t.cx);
            ensure_eq!(tally.waiting(), 0);
            for &cpu in &gone {
                on(cpu, t.cx)?;
                synchronize_rcu(t.cx);
                synchronize_rcu_expedited(t.cx);
            }
        }
        Ok(())
    }

    /// Floods of callbacks, with interrupts on and off, barriers, both kinds of grace period, and polling.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn callbacks_barriers_and_grace_periods_survive_cpus_that_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        let stalls = rcu::stats().stalls;
        let mut load = Load::new();
        let flood = Arc::<Tally>::default();
        for _ in 0..threads() {
            let theirs = flood.clone();
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                if theirs.waiting() > rng.below(20_000) {
                    sched::sleep_ns(cx, MS);
                }
                let _irqs = rng.chance(1, 4).then(|| IrqGuard::new(ATOMIC));
                (0..rng.below(64)).for_each(|_| theirs.queue());
                Ok(())
            })?;
        }
        for _ in 0..2 {
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                let tally = Arc::<Tally>::default();
                (0..rng.below(32)).for_each(|_| tally.queue());
                rcu_barrier(cx);
                ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
                sched::sleep_ns(cx, rng.below(2 * MS));
                Ok(())
            })?;
        }
        let waits: [fn(&mut MaySleep); 3] = [synchronize_rcu, synchronize_rcu_expedited, |cx| {
            let cookie = rcu::start_poll();
            rcu::cond_synchronize(cookie, cx);
        }];
        for wait in waits {
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |_, cx| {
                wait(cx);
                Ok(())
            })?;
        }
        let result = toggle_all(&cpus, &mut t.rng, t.cx);
        let turns = load.end(t.cx)?;
        result?;
        rcu_barrier(t.cx);
        t.note(format_args!("{} callbacks; turns {turns:?}", flood.queued.load(Relaxed)));
        ensure_eq!(flood.waiting(), 0, "callbacks are lost");
        ensure_eq!(rcu::stats().stalls, stalls, "a grace period stalled");
        ensure!(turns.iter().all(|&turns| turns > 0), "too little happened: {turns:?}");
        Ok(())
    }
}
