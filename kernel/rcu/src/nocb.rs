//! Offloaded CPUs: their callbacks wait and run on other CPUs.
//!
//! For CPUs that are to be left alone. `rcu_nocbs=` names them at boot, [`offload`] and [`deoffload`] switch one while it
//! works. A CPU that is offloaded queues callbacks here and is done with them: it needs no tick for them, runs none, and is not
//! interrupted for a barrier.
//!
//! ```text
//!   call_rcu ─┬─ the first 16 of a tick ──────► list: done │ wait │ next_ready │ next      (rcu.nocb)
//!             └─ the others, lazy ones ─► bypass ──┘  ▲           │
//!                                  (rcu.nocb_bypass)  │           └──► rcuop/N calls what is done
//!                                     rcuog/M: moves on the lists of its group, waits for their grace periods
//! ```
//!
//! - The **list** is a segmented list like any other, but under a lock. What comes to it first wakes the group's thread.
//! - The **bypass** keeps a flood, and callbacks that nobody hurries, off that lock and from waking anybody: it has a lock of
//!   its own, held for a few instructions, and a time at which it is due: a tick from its oldest callback, or
//!   `grange.rcu_lazy_flush_ms` if all in it are lazy. A timer then wakes the group's thread, which *flushes* it to the list.
//! - **Lazy** callbacks ([`set_lazy`]) are flushed with the bypass: when they are due, when the CPU queues one that is not
//!   lazy, at the high mark, by a barrier, when memory is short, and when the CPU goes offline or is deoffloaded.
//! - `call_rcu` with interrupts off wakes nobody and arms no timer, because its caller may hold a run queue: a lazy `irq_work`
//!   does that at the next interrupt exit.
//! - Threads ([`crate::nocb_threads`]) keep off offloaded CPUs as long as another one is online.
//!
//! Invariants
//! - NOCB-1: while a CPU is offloaded its own list is empty, nothing of it is being called there, and its callbacks are here;
//!   else none are put here. The CPU switches itself, in its stopper, with interrupts off (INV-2), under `rcu.nocb`; an
//!   offline CPU, which has none, is switched by whoever keeps the CPUs.
//! - NOCB-2: `len` counts what is on the list, in the bypass, and taken by `rcuop/N` and not yet called. It is raised before a
//!   callback is put here and lowered after it is called, or counted elsewhere.
//! - NOCB-3: the bypass is empty, or the group's thread looks at it when it is due, or sooner.
//!
//! Locks: `rcu.nocb`; in it `rcu.nocb_bypass` and `rcu.orphans`. Both may be taken under any lock, with interrupts off.
//! Linux: kernel/rcu/tree_nocb.h; rows R-18, R-19.

use core::mem::offset_of;

use arch::{AtomicCpuMask, CpuId, CpuMask, MAX_CPUS, clock, cpu};
use sched::{Mutex, SpawnError, Timer, WaitQueue, keep_cpus, stop_one_cpu};
use sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, IrqWork, LockClass, MaySleep, SpinLock, bug, param};

use crate::cblist::{CbList, Chain};
use crate::cpu::{IrqsOff, Own, own};
use crate::{call, config, nocb_threads, overload};

/// Protects [`List`]. Inside it: `rcu.nocb_bypass`, `rcu.orphans`.
static LIST_CLASS: LockClass = LockClass::new("rcu.nocb");
/// Protects [`Bypass`]. Nothing is taken inside it.
static BYPASS_CLASS: LockClass = LockClass::new("rcu.nocb_bypass");
/// A mutex, held over a whole switch, `keep_cpus` included.
static SWITCH_CLASS: LockClass = LockClass::new("rcu.nocb_switch");
param! {
    /// CPUs whose callbacks are run on other CPUs from the start.
    pub static NOCBS: str = "rcu_nocbs", default "", if |text| parse_cpus(text).is_some(), form "all, or CPUs as in 0-2,5";
}

/// "Never" as a time.
const NEVER: u64 = u64::MAX;

/// The segmented list of an offloaded CPU.
pub(crate) struct List {
    pub(crate) cbs: CbList,
    /// NOCB-1.
    offloaded: bool,
}

/// See the module documentation.
struct Bypass {
    chain: Chain,
    /// Of these, lazy ones.
    lazy: usize,
    /// When it is to be flushed, in nanoseconds; [`NEVER`] while it is empty.
    due_ns: u64,
}

/// What there is for each CPU, offloaded or not.
pub(crate) struct Nocb {
    pub(crate) list: SpinLock<List>,
    bypass: SpinLock<Bypass>,
    /// NOCB-2.
    pub(crate) len: AtomicUsize,
    /// Wakes and arms where `call_rcu` may not.
    kick: IrqWork,
    /// Goes off when the bypass is due.
    timer: Timer,
    /// The next kick wakes the group's thread.
    wake: AtomicBool,
    /// Where `rcuop/N` waits.
    pub(crate) ready: WaitQueue,
    /// The first CPU of the group; set before the CPU is offloaded, and then the same for ever.
    pub(crate) leader: AtomicUsize,
    /// Where `rcuog/M` waits; a leader's is used.
    pub(crate) group: WaitQueue,
    /// It is to look at its lists.
    pub(crate) asked: AtomicBool,
    /// It waits for a grace period.
    pub(crate) waits: AtomicBool,
}

arch::per_cpu! {
    static NOCB: Nocb = Nocb {
        list: SpinLock::new(List { cbs: CbList::new(), offloaded: false }, &LIST_CLASS),
        bypass: SpinLock::new(Bypass { chain: Chain::new(), lazy: 0, due_ns: NEVER }, &BYPASS_CLASS),
        len: AtomicUsize::new(0),
        kick: IrqWork::new(kicked),
        timer: Timer::new(timed_out),
        wake: AtomicBool::new(false),
        ready: WaitQueue::new(),
        leader: AtomicUsize::new(0),
        group: WaitQueue::new(),
        asked: AtomicBool::new(false),
        waits: AtomicBool::new(false),
    };
}

/// CPUs that are offloaded, or about to be: the threads leave them.
static OFFLOADED: AtomicCpuMask = AtomicCpuMask::new();
/// How long callbacks may be lazy, in nanoseconds; 0: they are not. Not before [`init`], so not before threads run.
static LAZY_NS: AtomicU64 = AtomicU64::new(0);
/// One switch at a time. It protects which threads there are.
static SWITCH: Mutex<nocb_threads::Spawned> = Mutex::new(nocb_threads::Spawned::NONE, &SWITCH_CLASS);

/// Why a CPU was not offloaded. Nothing has happened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum OffloadError {
    /// The machine has no such CPU.
    NotPresent,
    /// There is no memory for its threads. Trying again later is sensible.
    NoMemory,
}

impl core::fmt::Display for OffloadError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            OffloadError::NotPresent => "the machine has no such CPU",
            OffloadError::NoMemory => "no memory for the threads that run its callbacks",
        })
    }
}

impl From<SpawnError> for OffloadError {
    fn from(_: SpawnError) -> Self {
        OffloadError::NoMemory
    }
}

/// Has the callbacks of `cpu`, those that wait there now among them, run on other CPUs from now on. Of a CPU that is
/// offloaded already: nothing.
///
/// On return no callback runs on `cpu`, as long as a CPU that is not offloaded is online. The CPU may be offline.
///
/// Context: task, sleeps; not from a callback.
///
/// # Errors
/// [`OffloadError`]; nothing has changed.
pub fn offload(cpu: CpuId, cx: &mut MaySleep) -> Result<(), OffloadError> {
    if !cpu::present().contains(cpu) {
        return Err(OffloadError::NotPresent);
    }
    let mut spawned = SWITCH.lock(cx);
    nocb_threads::spawn_for(cpu, &mut spawned, cx)?;
    // From here on the threads leave it; the stopper below runs between two callbacks of one that is there.
    OFFLOADED.set(cpu);
    switch(cpu, true, cx);
    of(cpu).ask_group();
    Ok(())
}

/// Takes [`offload`] back: callbacks of `cpu`, those that wait among them, run there again. On return none is being called
/// elsewhere.
///
/// Context: task, sleeps; not from a callback.
///
/// # Errors
/// [`OffloadError::NotPresent`].
pub fn deoffload(cpu: CpuId, cx: &mut MaySleep) -> Result<(), OffloadError> {
    if !cpu::present().contains(cpu) {
        return Err(OffloadError::NotPresent);
    }
    let _turn = SWITCH.lock(cx);
    switch(cpu, false, cx);
    OFFLOADED.clear(cpu);
    // `rcuop/N` has taken some and goes on calling them.
    while !of(cpu).list.lock_irqsave(cx).cbs.is_empty() {
        sched::sleep_ns(cx, sched::config::tick_ns());
    }
    Ok(())
}

/// The CPUs whose callbacks run elsewhere. Context: any.
pub fn offloaded() -> CpuMask {
    OFFLOADED.load()
}

/// Says how long callbacks of offloaded CPUs may be lazy; `None`: they are not, and those that are get going.
///
/// At boot `rcutree.enable_rcu_lazy` and `grange.rcu_lazy_flush_ms` say so.
///
/// Context: task.
pub fn set_lazy(ms: Option<u32>) {
    LAZY_NS.store(u64::from(ms.unwrap_or(0)) * 1_000_000, Ordering::Relaxed);
    if ms.is_none() {
        flush_lazy();
    }
}

/// Offloads the CPUs that the command line names. Context: boot, after the grace-period thread exists.
///
/// # Panics
/// If there is no memory for the threads.
pub(crate) fn init(cx: &mut MaySleep) {
    let named = parse_cpus(NOCBS.get()).expect("checked with the command line");
    let absent = named - cpu::present();
    if NOCBS.get() != "all" && !absent.is_empty() {
        log::warn!("rcu_nocbs: there are no CPUs {absent}");
    }
    for cpu in (named & cpu::present()).iter() {
        offload(cpu, cx).unwrap_or_else(|error| panic!("CPU {cpu} of \"rcu_nocbs\": {error}"));
    }
    if config::LAZY.get() {
        set_lazy(Some(config::LAZY_FLUSH_MS.get()));
    }
    mm::shrinker::register(&SHRINKER);
}

/// CPUs as in `0-2,5`, or all.
fn parse_cpus(text: &str) -> Option<CpuMask> {
    let all = CpuMask::first_n(MAX_CPUS);
    if text == "all" {
        return Some(all);
    }
    let mut mask = CpuMask::EMPTY;
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        (first..=last).for_each(|cpu| {
            mask.insert(CpuId::new(cpu));
        });
    }
    Some(mask)
}

/// What there is for `cpu`.
pub(crate) fn of(cpu: CpuId) -> &'static Nocb {
    // SAFETY: areas of present CPUs live for ever, and all fields are shared by their own means.
    unsafe { &*NOCB.ptr_on(cpu) }
}

fn here(_: &impl IrqsOff) -> &'static Nocb {
    of(cpu::current())
}

/// Has `cpu` switched (NOCB-1).
fn switch(cpu: CpuId, to: bool, cx: &mut MaySleep) {
    let _cpus = keep_cpus(cx);
    if cpu::is_online(cpu) {
        let switched = stop_one_cpu(cx, cpu, || switch_here(to));
        debug_assert!(switched, "SCHED-22: CPU {cpu} went although the CPUs are kept");
        return;
    }
    let nocb = of(cpu);
    {
        let mut list = nocb.list.lock_irqsave(cx);
        list.offloaded = to;
        if !to {
            nocb.flush(&mut list);
            let moved = list.cbs.queued();
            call::orphan(&mut list.cbs);
            nocb.lower(moved);
        }
    }
    call::adopt();
}

/// Context: this CPU's stopper.
fn switch_here(to: bool) {
    let irqs = IrqGuard::new(ATOMIC);
    let me = own(&irqs);
    let nocb = here(&irqs);
    let mut list = nocb.list.lock(&irqs);
    if list.offloaded == to {
        return;
    }
    {
        let mut cbs = me.cbs.borrow_mut();
        if to {
            debug_assert!(cbs.len() == cbs.queued(), "INV-2: callbacks are being called under the stopper");
            nocb.len.fetch_add(cbs.len(), Ordering::Relaxed);
            list.cbs.adopt(&mut cbs);
            call::note_move();
            call::publish_len(cbs.len());
        } else {
            if bug!(
                "rcu.deoffload_lost",
                "callbacks in the bypass are lost when a CPU is deoffloaded",
                "rcu_nocb.callbacks_that_wait_go*"
            ) {
                nocb.bypass.lock(&irqs).chain = Chain::new();
            }
            nocb.flush(&mut list);
            let moved = list.cbs.queued();
            cbs.adopt(&mut list.cbs);
            call::publish_len(cbs.len());
            call::note_move();
            nocb.lower(moved);
        }
    }
    list.offloaded = to;
    me.offloaded.set(to);
    overload::relax(me, 0);
}

/// Hook: this CPU comes up; it may have been switched while it was offline. Interrupts are off.
pub(crate) fn cpu_up(me: &Own) {
    me.offloaded.set(of(cpu::current()).list.lock_irqsave(ATOMIC).offloaded);
}

/// Hook: this CPU goes. Nobody is to wait for its timer's sake. Interrupts are off.
pub(crate) fn cpu_down(me: &Own) {
    if me.offloaded.get() {
        let nocb = of(cpu::current());
        nocb.make_due();
        nocb.wake.store(true, Ordering::Relaxed);
        // Runs on a CPU that is online (IW-4).
        nocb.kick.queue();
    }
}

/// Queues a callback of this CPU, which is offloaded. Interrupts are off; were they on before, it may wake.
///
/// # Safety
/// As for [`call_rcu`](crate::call_rcu).
#[cold]
#[inline(never)]
pub(crate) unsafe fn enqueue(irqs: &IrqGuard<'_>, head: *mut CallbackHead, may_be_lazy: bool, may_wake: bool) {
    let (me, nocb) = (own(irqs), here(irqs));
    let len = nocb.len.fetch_add(1, Ordering::Relaxed) + 1;
    let high_mark = config::QHIMARK.get() as usize;
    if len < config::QLOWMARK.get() as usize {
        me.attention_at.set(high_mark);
    }
    let now = clock::now_ns();
    let lazy_ns = LAZY_NS.load(Ordering::Relaxed);
    let lazy = may_be_lazy && lazy_ns != 0;
    let act = if lazy || me.load.is_burst(now, config::NOCB_BURST.get()) {
        let wait = if lazy { lazy_ns } else { sched::config::tick_ns() };
        // SAFETY: passed on from the caller.
        unsafe { nocb.bypass.lock(irqs).push(head, lazy, now + wait) }
    } else {
        let mut list = nocb.list.lock(irqs);
        let asked = list.cbs.has_untagged();
        nocb.flush(&mut list);
        // SAFETY: passed on from the caller.
        unsafe { list.cbs.enqueue(head) };
        if !asked {
            nocb.wake.store(true, Ordering::Relaxed);
        }
        !asked
    };
    let flood = len >= me.attention_at.get();
    if flood {
        me.attention_at.set(len + high_mark);
        overload::count_flood();
        nocb.make_due();
        nocb.wake.store(true, Ordering::Relaxed);
    }
    if !(act || flood) {
        return;
    }
    if may_wake {
        nocb.act();
    } else {
        nocb.kick.queue_lazy();
    }
}

impl Bypass {
    /// Puts `head` at the end; true if it is due sooner for it.
    ///
    /// # Safety
    /// As for [`Chain::push`].
    unsafe fn push(&mut self, head: *mut CallbackHead, lazy: bool, due_ns: u64) -> bool {
        // SAFETY: passed on from the caller.
        unsafe { self.chain.push(head) };
        self.lazy += usize::from(lazy);
        let sooner = due_ns < self.due_ns;
        self.due_ns = self.due_ns.min(due_ns);
        sooner
    }
}

impl Nocb {
    /// Moves what is in the bypass to `list`, which is this CPU's, locked.
    pub(crate) fn flush(&self, list: &mut List) {
        let mut bypass = self.bypass.lock(ATOMIC);
        list.cbs.enqueue_all(&mut bypass.chain);
        bypass.lazy = 0;
        bypass.due_ns = NEVER;
    }

    /// [`Nocb::flush`] if the bypass is due at `now_ns`.
    pub(crate) fn flush_if_due(&self, list: &mut List, now_ns: u64) {
        // Locked twice, for one place that flushes; the CPU itself may push in between.
        let due = self.bypass.lock(ATOMIC).due_ns <= now_ns;
        if due {
            self.flush(list);
        }
    }

    /// Has the bypass flushed when its group's thread looks next.
    fn make_due(&self) {
        let mut bypass = self.bypass.lock_irqsave(ATOMIC);
        if !bypass.chain.is_empty() {
            bypass.due_ns = 0;
        }
    }

    /// Wakes and arms as is called for. Context: hardirq, or where the CPU's own `call_rcu` may wake.
    fn act(&'static self) {
        if self.wake.swap(false, Ordering::Relaxed) {
            self.ask_group();
        }
        let due = self.bypass.lock_irqsave(ATOMIC).due_ns;
        if due != NEVER
            && !bug!("rcu.lazy_kept", "nobody looks when a bypass is due", "rcu_nocb.callbacks_of_an_offloaded_cpu*")
        {
            self.timer.arm_at(due);
        }
    }

    /// Has the group's thread look at its lists. Context: as for a wake-up.
    pub(crate) fn ask_group(&self) {
        let leader = of(CpuId::new(self.leader.load(Ordering::Relaxed)));
        leader.asked.store(true, Ordering::Relaxed);
        leader.group.wake_all();
    }

    /// Takes `n` off `len` that have been called, or are counted elsewhere (NOCB-2).
    pub(crate) fn lower(&self, n: usize) {
        // Release: pairs with the Acquire in `barrier`; a barrier that sees zero sees what the callbacks wrote.
        self.len.fetch_sub(n, Ordering::Release);
    }
}

fn kicked(work: &IrqWork) {
    // SAFETY: the only item with this function is the field of a per-CPU value, which lives for ever.
    unsafe { &*core::ptr::from_ref(work).byte_sub(offset_of!(Nocb, kick)).cast::<Nocb>() }.act();
}

fn timed_out(timer: &Timer) {
    // SAFETY: as in `kicked`, for the timer.
    unsafe { &*core::ptr::from_ref(timer).byte_sub(offset_of!(Nocb, timer)).cast::<Nocb>() }.ask_group();
}

/// Adopts orphans for this CPU, which is offloaded.
pub(crate) fn adopt_orphans(irqs: &IrqGuard<'_>) {
    let nocb = here(irqs);
    let mut list = nocb.list.lock(irqs);
    call::take_orphans(&mut list.cbs, |_, moved| {
        nocb.len.fetch_add(moved, Ordering::Relaxed);
    });
    drop(list);
    nocb.wake.store(true, Ordering::Relaxed);
    nocb.kick.queue();
}

/// Puts `head` behind all callbacks of `cpu` that wait here, lazy ones and those of the bypass included, and has them get
/// going. False if there is none; then `head` stays the caller's.
///
/// Context: any but NMI, under no lock.
///
/// # Safety
/// As for [`CbList::entrain`].
pub(crate) unsafe fn entrain(cpu: CpuId, head: *mut CallbackHead) -> bool {
    let nocb = of(cpu);
    nocb.len.fetch_add(1, Ordering::Relaxed);
    let entrained = {
        let mut list = nocb.list.lock_irqsave(ATOMIC);
        if !bug!("rcu.barrier_bypass", "rcu_barrier forgets the callbacks in a bypass", "rcu_nocb.a_barrier_waits*") {
            nocb.flush(&mut list);
        }
        // SAFETY: passed on from the caller.
        unsafe { list.cbs.entrain(head) }
    };
    if entrained {
        nocb.ask_group();
    } else {
        nocb.lower(1);
    }
    entrained
}

/// Callbacks of `cpu` that wait here (NOCB-2).
pub(crate) fn waiting_on(cpu: CpuId) -> usize {
    // Acquire: pairs with the Release in `lower`.
    of(cpu).len.load(Ordering::Acquire)
}

/// Lazy callbacks that wait in bypasses.
pub(crate) fn lazy_waiting() -> usize {
    cpu::present().iter().map(|cpu| of(cpu).bypass.lock_irqsave(ATOMIC).lazy).sum()
}

/// Gets all lazy callbacks going. Context: task.
fn flush_lazy() {
    for cpu in OFFLOADED.load().iter() {
        let nocb = of(cpu);
        nocb.flush(&mut nocb.list.lock_irqsave(ATOMIC));
        nocb.ask_group();
    }
}

/// When memory is short nobody is lazy. What the callbacks free comes after a grace period, so nothing is freed on return;
/// whoever waits for callbacks at the last effort waits for these, too.
static SHRINKER: mm::Shrinker = mm::Shrinker::new("rcu_lazy", lazy_waiting, |_, _| {
    flush_lazy();
    0
});
