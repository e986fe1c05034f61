//! Locks, lists, `irq_work` and the log: on all CPUs at once, and with an NMI at every instruction.
//!
//! Single-stepping plays the NMI: the debug exception after each instruction runs the handler as one.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::{clock, cpu, irq};
use sync::context::in_hardirq;
use sync::{
    ATOMIC, DynPerCpu, IrqGuard, IrqWork, LlistHead, LlistNode, LocalTryLock, PreemptGuard, SpinLock, lock_class, smp,
};

use crate::stepping::{self, Visit};
use crate::{ensure, ensure_eq, ktest, skip};

/// How long another CPU may take for a trifle, in nanoseconds.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Waits until `done`, within reason.
fn wait(done: impl Fn() -> bool) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    while !done() {
        if clock::now_ns() > end {
            return false;
        }
        irq::relax();
    }
    true
}

arch::per_cpu! {
    /// A count under a lock of its CPU.
    static LOCAL: LocalTryLock<u64> = LocalTryLock::new(0);
}

/// Every how many boundaries there is an NMI; see [`stepping`].
const STRIDES: [usize; 6] = [1, 2, 3, 5, 17, 61];

/// Whether the stepped code is between taking [`LOCAL`] and giving it back.
static INSIDE: AtomicBool = AtomicBool::new(false);
/// NMIs that found the stepped code inside, and yet got the lock.
static INTRUDED: AtomicU64 = AtomicU64::new(0);
/// NMIs that got what they tried for.
static GOT: AtomicU64 = AtomicU64::new(0);

ktest! {
    /// Interrupts and other CPUs all want one lock; no increment under it is lost.
    #[tags(race)]
    fn a_spin_lock_keeps_the_increments_of_all_cpus_apart(_t: &mut Test) {
        const EACH: u64 = 5_000;
        static COUNT: SpinLock<u64> = SpinLock::new(0, lock_class!("tests.count"));
        *COUNT.lock_irqsave(ATOMIC) = 0;
        let online = cpu::online();
        smp::run_on_mask(&online, |_| {
            for _ in 0..EACH {
                let mut count = COUNT.lock_irqsave(ATOMIC);
                let before = *count;
                core::hint::black_box(&before);
                *count = before + 1;
            }
        });
        ensure_eq!(*COUNT.lock_irqsave(ATOMIC), EACH * online.count() as u64);
        Ok(())
    }

    /// An NMI at every instruction of taking, using and giving back a local lock tries for it, too.
    fn a_local_lock_holds_against_an_nmi_at_any_instruction(t: &mut Test) {
        let pin = PreemptGuard::new(t.cx);
        let Some(mut local) = LocalTryLock::this(&LOCAL, &pin) else {
            return Err(crate::__failed!("the lock is taken before the test"));
        };
        *local = 0;
        drop(local);
        GOT.store(0, Relaxed);
        INTRUDED.store(0, Relaxed);
        struct Tries;
        impl Visit for Tries {
            fn visit() {
                if let Some(mut local) = LocalTryLock::this(&LOCAL, ATOMIC) {
                    INTRUDED.fetch_add(u64::from(INSIDE.load(Relaxed)), Relaxed);
                    GOT.fetch_add(1, Relaxed);
                    *local += 1;
                }
            }
        }
        let (mut boundaries, mut taken) = (0, 0);
        for run in stepping::runs(&STRIDES) {
            boundaries += stepping::step::<Tries>(run, || {
                if let Some(mut local) = LocalTryLock::this(&LOCAL, &pin) {
                    INSIDE.store(true, Relaxed);
                    let before = *local;
                    core::hint::black_box(&before);
                    *local = before + 1;
                    INSIDE.store(false, Relaxed);
                    taken += 1;
                }
            });
        }
        let local = LocalTryLock::this(&LOCAL, &pin).map(|local| *local);
        drop(pin);
        let got = GOT.load(Relaxed);
        ensure_eq!(INTRUDED.load(Relaxed), 0);
        ensure_eq!(taken, stepping::runs(&STRIDES).count() as u64, "an NMI leaves the lock as it found it");
        ensure_eq!(local, Some(got + taken), "{got} NMIs got the lock");
        ensure!(0 < got && got < boundaries, "{got} of {boundaries}");
        t.note(format_args!("{boundaries} boundaries, {got} NMIs got the lock"));
        Ok(())
    }

    /// NMIs push to the very list that the stepped code pushes to; every node comes out once.
    fn a_list_takes_an_nmi_at_any_instruction(t: &mut Test) {
        // As long as there are nodes an NMI at every boundary keeps the stepped push from getting through.
        const NODES: usize = 500;
        static LIST: LlistHead = LlistHead::new();
        static NODES_OF_NMI: AtomicPtr<LlistNode> = AtomicPtr::new(core::ptr::null_mut());
        static PUSHED: AtomicUsize = AtomicUsize::new(0);
        struct Pushes;
        impl Visit for Pushes {
            fn visit() {
                let n = PUSHED.load(Relaxed);
                if n < NODES {
                    PUSHED.store(n + 1, Relaxed);
                    // SAFETY: each node is pushed once a run, and lives for ever.
                    unsafe { LIST.add(NODES_OF_NMI.load(Relaxed).add(n)) };
                }
            }
        }
        // Leaked: nodes on a list must not move or go away, also if the test fails.
        let nodes: &'static mut [LlistNode] = Vec::leak((0..NODES).map(|_| LlistNode::new()).collect());
        let own: *mut LlistNode = Box::leak(Box::new(LlistNode::new()));
        NODES_OF_NMI.store(nodes.as_mut_ptr(), Relaxed);
        let (mut boundaries, mut pushed) = (0, 0);
        for run in stepping::runs(&STRIDES) {
            // The last run has taken all of them off the list.
            PUSHED.store(0, Relaxed);
            boundaries += stepping::step::<Pushes>(run, || {
                // SAFETY: a node that lives for ever, and is on no list since the end of the last run.
                unsafe { LIST.add(own) };
            });
            let (mut total, mut own_seen) = (0, 0);
            for node in LIST.take_all() {
                total += 1;
                own_seen += usize::from(node == own);
            }
            ensure_eq!(own_seen, 1);
            ensure_eq!(total, PUSHED.load(Relaxed) + 1, "from {} on, every {}", run.1, run.0);
            pushed += total - 1;
        }
        t.note(format_args!("{boundaries} boundaries, {pushed} nodes from NMIs"));
        Ok(())
    }

    /// Work that an NMI queues while the same list is being pushed to runs, in a hard interrupt.
    fn irq_work_that_an_nmi_queues_at_any_instruction_runs(t: &mut Test) {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        static RUNS_OF_NMI: AtomicU64 = AtomicU64::new(0);
        static ELSEWHERE: AtomicU64 = AtomicU64::new(0);
        fn ran(count: &AtomicU64) {
            count.fetch_add(1, Relaxed);
            ELSEWHERE.fetch_add(u64::from(!in_hardirq() || irq::enabled()), Relaxed);
        }
        static OUTER: IrqWork = IrqWork::new(|_| ran(&RUNS));
        static OF_NMI: IrqWork = IrqWork::new(|_| ran(&RUNS_OF_NMI));
        static QUEUED: AtomicU64 = AtomicU64::new(0);
        for count in [&RUNS, &RUNS_OF_NMI, &ELSEWHERE, &QUEUED] {
            count.store(0, Relaxed);
        }
        struct Queues;
        impl Visit for Queues {
            fn visit() {
                QUEUED.fetch_add(u64::from(OF_NMI.queue()), Relaxed);
            }
        }
        let (mut boundaries, mut rounds) = (0, 0);
        for run in stepping::runs(&STRIDES) {
            boundaries += stepping::step::<Queues>(run, || {
                let _off = IrqGuard::new(ATOMIC);
                OUTER.queue();
            });
            OUTER.sync(t.cx);
            OF_NMI.sync(t.cx);
            rounds += 1;
        }
        t.note(format_args!("{boundaries} boundaries, queued {QUEUED:?} times by NMIs"));
        ensure_eq!(RUNS.load(Relaxed), rounds);
        ensure_eq!(RUNS_OF_NMI.load(Relaxed), QUEUED.load(Relaxed), "a run for each time it was queued");
        ensure!(QUEUED.load(Relaxed) > 0);
        ensure_eq!(ELSEWHERE.load(Relaxed), 0, "not in a hard interrupt");
        Ok(())
    }

    /// Work goes to the CPU it is queued for.
    fn irq_work_runs_on_the_cpu_it_is_queued_for(t: &mut Test) {
        static RAN_ON: AtomicUsize = AtomicUsize::new(usize::MAX);
        static WORK: IrqWork = IrqWork::new(|_| RAN_ON.store(cpu::current().index(), Relaxed));
        for id in cpu::online().iter() {
            ensure!(WORK.queue_on(id));
            ensure!(wait(|| !WORK.is_pending()), "CPU {id} does not run it");
            WORK.sync(t.cx);
            ensure_eq!(RAN_ON.load(Relaxed), id.index());
        }
        Ok(())
    }

    /// Lazy work runs at the next tick at the latest.
    fn lazy_irq_work_runs_soon(t: &mut Test) {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        static WORK: IrqWork = IrqWork::new(|_| {
            RUNS.fetch_add(1, Relaxed);
        });
        let before = RUNS.load(Relaxed);
        ensure!(WORK.queue_lazy());
        ensure!(wait(|| !WORK.is_pending()), "not within {PATIENCE_NS} ns");
        WORK.sync(t.cx);
        ensure_eq!(RUNS.load(Relaxed), before + 1);
        Ok(())
    }

    /// All CPUs log at once, and an NMI logs at instructions all over one line; no line is torn.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn lines_logged_from_everywhere_are_never_torn(_t: &mut Test) {
        const EACH: u64 = 20;
        static OF_NMI: AtomicU64 = AtomicU64::new(0);
        struct Logs;
        impl Visit for Logs {
            fn visit() {
                // Not for ever: the console is slow, and the ring finite.
                if OF_NMI.load(Relaxed) < 100 {
                    let n = OF_NMI.fetch_add(1, Relaxed);
                    log::info!("whole-line nmi {n} {n}");
                }
            }
        }
        OF_NMI.store(0, Relaxed);
        let online = cpu::online();
        smp::run_on_mask(&online, |id| {
            for n in 0..EACH {
                log::info!("whole-line cpu{id} {n} {n}");
            }
        });
        let boundaries = stepping::step::<Logs>((64, 0), || log::info!("whole-line stepped 0 0"));
        let (mut whole, mut torn) = (0, 0);
        sync::log::for_each_line(|line| {
            let Some(at) = line.windows(11).position(|window| window == b"whole-line ") else { return };
            let mut words = line[at..].trim_ascii_end().split(|&byte| byte == b' ').skip(2);
            match (words.next(), words.next(), words.next()) {
                (Some(a), Some(b), None) if a == b => whole += 1,
                _ => torn += 1,
            }
        });
        ensure_eq!(torn, 0);
        let expected = EACH * online.count() as u64 + OF_NMI.load(Relaxed) + 1;
        if expected > sync::log::RECORDS as u64 / 2 {
            skip!("{expected} lines may not all be in the ring any more");
        }
        ensure_eq!(whole, expected, "{boundaries} boundaries");
        Ok(())
    }

    /// A dynamic per-CPU variable has one copy on each CPU, and its room is used again.
    fn a_dynamic_per_cpu_variable_has_a_copy_on_each_cpu(_t: &mut Test) {
        let make = |start: usize| DynPerCpu::new(|id| start + id.index()).map_err(|full| crate::__failed!("{full}"));
        let variable = make(100)?;
        smp::run_on_mask(&cpu::online(), |_| {
            // SAFETY: in a hard interrupt (or with interrupts off) on the CPU whose copy it is.
            unsafe { *variable.this_ptr() += 1_000 };
        });
        for id in cpu::online().iter() {
            // SAFETY: all calls are over; nobody writes.
            ensure_eq!(unsafe { *variable.ptr_on(id) }, 1_100 + id.index());
        }
        let place = variable.ptr_on(cpu::current()).addr();
        drop(variable);
        let again = make(0)?;
        ensure_eq!(again.ptr_on(cpu::current()).addr(), place, "another thread may have come first, but none makes any");
        Ok(())
    }
}
