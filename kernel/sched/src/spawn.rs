//! Making threads, and what becomes of them when they end.
//!
//! Key types: [`JoinHandle`], [`SpawnError`].
//!
//! The life of a `Thread` structure (`SCHED-3`): made or taken from the pool by [`spawn`] → runs its body →
//! `Dead` → [`bury`] by the next thread on its CPU, once its stack is no longer in use → pool, stack included. More than
//! [`STACKS_KEPT`](crate::config::STACKS_KEPT) stacks in the pool are unmapped by the next `spawn`; the structures stay.
//!
//! Contexts: [`spawn`] and [`JoinHandle::join`] in task context only, they allocate and sleep. `bury` runs with interrupts
//! off, takes the pool lock and frees nothing.
//!
//! Linux: `kthread_create_on_cpu` in `kernel/kthread.c`, the stack cache in `kernel/fork.c`.

use alloc::alloc::{Layout, alloc};
use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering, fence};

use arch::{CpuId, CpuMask, irq, task};
use sync::{ATOMIC, LockClass, MaySleep, SpinLock, context};

use crate::affinity;
use crate::config::STACKS_KEPT;
use crate::hooks::hooks;
use crate::idle;
use crate::init::name_idle;
use crate::rq::set_prio;
use crate::stack_depth;
use crate::switch::{finish_switch, leave_for_ever};
use crate::thread::{Prio, Thread, current, publish};
use crate::wait::Completion;
use crate::wake::place_new;

/// What a thread runs.
pub(crate) type Body = Box<dyn FnOnce(&mut MaySleep) + Send>;

/// No thread could be made; nothing has happened. Trying again later is sensible.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SpawnError;

impl core::fmt::Display for SpawnError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no memory for a thread")
    }
}

/// Dead threads, chained through `Thread::pool_next`.
struct Pool {
    with_stack: *const Thread,
    without_stack: *const Thread,
    stacks: usize,
}

// SAFETY: the pointers are to type-stable threads that only the pool owns.
unsafe impl Send for Pool {}

/// Innermost: nothing is taken inside. Taken with interrupts off, also between two threads in `finish_switch`.
static POOL_CLASS: LockClass = LockClass::new("sched.pool");
/// Threads to be had for the next `spawn`.
static POOL: SpinLock<Pool> =
    SpinLock::new(Pool { with_stack: ptr::null(), without_stack: ptr::null(), stacks: 0 }, &POOL_CLASS);

impl Pool {
    fn pop(list: &mut *const Thread) -> Option<&'static Thread> {
        // SAFETY: null, or a type-stable thread (SCHED-3) that the pool owns.
        let thread: &'static Thread = unsafe { list.as_ref() }?;
        *list = thread.pool_next.load(Ordering::Relaxed);
        Some(thread)
    }

    fn push(list: &mut *const Thread, thread: &'static Thread) {
        thread.pool_next.store(list.cast_mut(), Ordering::Relaxed);
        *list = thread;
    }
}

/// Takes a dead thread whose stack is no longer in use into the pool.
#[cold]
#[inline(never)]
pub(crate) fn bury(thread: &'static Thread) {
    thread.clear_identity();
    let mut pool = POOL.lock_irqsave(ATOMIC);
    Pool::push(&mut pool.with_stack, thread);
    pool.stacks += 1;
}

/// Unmaps one stack if the pool holds too many.
fn trim_pool(cx: &mut MaySleep) {
    let thread = {
        let mut pool = POOL.lock_irqsave(cx);
        if pool.stacks <= STACKS_KEPT {
            return;
        }
        pool.stacks -= 1;
        Pool::pop(&mut pool.with_stack)
    };
    let Some(thread) = thread else { return };
    stack_depth::forget(thread);
    // SAFETY: out of the pool, the thread is ours alone.
    if let Some(stack) = unsafe { (*thread.stack.get()).take() } {
        stack.free(cx);
    }
    Pool::push(&mut POOL.lock_irqsave(cx).without_stack, thread);
}

/// A thread with a stack that nobody else knows of.
fn obtain(cx: &mut MaySleep) -> Result<&'static Thread, SpawnError> {
    trim_pool(cx);
    let used = {
        let mut pool = POOL.lock_irqsave(cx);
        match Pool::pop(&mut pool.with_stack) {
            Some(thread) => {
                pool.stacks -= 1;
                Some(thread)
            }
            None => Pool::pop(&mut pool.without_stack),
        }
    };
    let thread = match used {
        Some(thread) => thread,
        None => make()?,
    };
    // SAFETY: out of the pool or new, the thread is ours alone.
    let stack = unsafe { &mut *thread.stack.get() };
    if stack.is_none() {
        match mm::stack::alloc(cx) {
            Ok(new) => *stack = Some(new),
            Err(mm::AllocError) => {
                Pool::push(&mut POOL.lock_irqsave(cx).without_stack, thread);
                return Err(SpawnError);
            }
        }
    }
    Ok(thread)
}

/// A new `Thread`, on the list of all threads and never to be freed (`SCHED-3`).
pub(crate) fn make() -> Result<&'static Thread, SpawnError> {
    let thread: &'static Thread = Box::leak(try_box(Thread::new())?);
    publish(thread);
    Ok(thread)
}

/// `Box::new` for which no memory is a value.
pub(crate) fn try_box<T>(value: T) -> Result<Box<T>, SpawnError> {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return Ok(Box::new(value));
    }
    // SAFETY: the layout's size is not zero.
    let place: *mut T = unsafe { alloc(layout) }.cast();
    let Some(place) = NonNull::new(place) else {
        return Err(SpawnError);
    };
    // SAFETY: fresh memory of T's layout.
    unsafe { place.write(value) };
    // SAFETY: it came from the global allocator with T's layout and holds a T.
    Ok(unsafe { Box::from_raw(place.as_ptr()) })
}

/// What a thread and its handle share: the way the result takes.
struct Packet<T> {
    /// Two at first, the thread and its handle; who brings it to zero frees the packet.
    holders: AtomicU32,
    done: Completion,
    /// Written by the thread before `done`, taken by `join` after it.
    result: UnsafeCell<Option<T>>,
}

/// One of the two holders of a [`Packet`].
struct PacketRef<T>(NonNull<Packet<T>>);

// SAFETY: the packet hands a T from one thread to another, once.
unsafe impl<T: Send> Send for PacketRef<T> {}
// SAFETY: a shared PacketRef gives access to nothing but the completion.
unsafe impl<T: Send> Sync for PacketRef<T> {}

impl<T> PacketRef<T> {
    fn get(&self) -> &Packet<T> {
        // SAFETY: alive while a holder is.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for PacketRef<T> {
    fn drop(&mut self) {
        // Release: what this holder did comes before the free by the other; pairs with the fence below.
        if self.get().holders.fetch_sub(1, Ordering::Release) == 1 {
            // Acquire: pairs with the Release of the holder that went first.
            fence(Ordering::Acquire);
            // SAFETY: from `try_box` in `spawn`; no holder is left.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }
}

/// The right to wait for a thread and to have what it returns. Dropping it lets the thread go on by itself.
#[must_use = "dropping the handle detaches the thread; write `.detach()` if that is meant"]
pub struct JoinHandle<T> {
    packet: PacketRef<T>,
    thread: &'static Thread,
}

impl<T> JoinHandle<T> {
    /// Waits until the thread's body has returned and yields what it returned. The thread may still be on its way
    /// off its CPU.
    ///
    /// Context: task, sleeps.
    pub fn join(self, cx: &mut MaySleep) -> T {
        let packet = self.packet.get();
        packet.done.wait(cx);
        // SAFETY: the thread wrote it before it completed `done`, and does not touch it again.
        let result = unsafe { (*packet.result.get()).take() };
        result.expect("a thread completes only with a result")
    }

    /// Has the body returned?
    pub fn is_finished(&self) -> bool {
        self.packet.get().done.is_done()
    }

    /// The thread. After it has ended this may be another tenant (`SCHED-3`).
    pub fn thread(&self) -> &'static Thread {
        self.thread
    }

    /// Lets the thread run on by itself.
    pub fn detach(self) {}
}

/// Starts a thread that runs `f`, on `affinity` alone if given, else wherever there is room.
///
/// The thread may run, and end, before this returns. CPUs that are not up yet keep threads bound to them in
/// their queue until they are; one bound to a CPU that has gone offline runs anywhere, which is logged.
///
/// Context: task; allocates and may sleep.
///
/// # Errors
///
/// [`SpawnError`] when there is no memory for the thread, its stack or its closure; `f` is dropped.
pub fn spawn<T, F>(
    cx: &mut MaySleep,
    name: &str,
    prio: Prio,
    affinity: Option<CpuId>,
    f: F,
) -> Result<JoinHandle<T>, SpawnError>
where
    F: FnOnce(&mut MaySleep) -> T + Send + 'static,
    T: Send + 'static,
{
    let on = affinity.map_or_else(affinity::anywhere, CpuMask::of);
    spawn_as(cx, name, prio, (on, None), f)
}

/// Starts a thread that belongs to `cpu`: it runs there alone, elsewhere while that CPU is offline, and there again when
/// it comes back, unless it parks.
///
/// Context: task; allocates and may sleep.
///
/// # Errors
///
/// [`SpawnError`] as for [`spawn`].
pub fn per_cpu(
    cx: &mut MaySleep,
    name: &str,
    prio: Prio,
    cpu: CpuId,
    f: impl FnOnce(&mut MaySleep) + Send + 'static,
) -> Result<&'static Thread, SpawnError> {
    spawn_as(cx, name, prio, (CpuMask::of(cpu), Some(cpu)), f).map(|handle| handle.thread())
}

/// [`spawn`] with all that a thread can be: where it may run, and the CPU it belongs to.
fn spawn_as<T, F>(
    cx: &mut MaySleep,
    name: &str,
    prio: Prio,
    (on, home): (CpuMask, Option<CpuId>),
    f: F,
) -> Result<JoinHandle<T>, SpawnError>
where
    F: FnOnce(&mut MaySleep) -> T + Send + 'static,
    T: Send + 'static,
{
    cx.assert_may_sleep();
    let packet = Packet { holders: AtomicU32::new(2), done: Completion::new(), result: UnsafeCell::new(None) };
    let packet = NonNull::from(Box::leak(try_box(packet)?));
    let (ours, theirs) = (PacketRef(packet), PacketRef(packet));
    let body = try_box(move |cx: &mut MaySleep| {
        let theirs = theirs;
        let result = f(cx);
        // SAFETY: `join` reads it only after `done`.
        unsafe { *theirs.get().result.get() = Some(result) };
        theirs.get().done.complete_all();
    })?;
    let thread = obtain(cx)?;
    thread.set_identity(name, on, home);
    start(thread, prio, body);
    Ok(JoinHandle { packet: ours, thread })
}

/// Sends a thread that the caller owns on its way.
fn start(thread: &'static Thread, prio: Prio, body: Body) {
    thread.state.set_running();
    // Under the lock: reports know the thread by now.
    set_prio(thread, prio);
    // SAFETY: the caller owns the thread, and nobody else looks at the body of one that has not run.
    unsafe { *thread.body.get() = Some(body) };
    // SAFETY: as above; `obtain` gave it a stack.
    unsafe { prepare(thread, thread_main) };
    place_new(thread);
}

/// Makes the idle thread of the boot CPU, which needs a stack of its own. Not queued anywhere (`SCHED-8`).
pub(crate) fn make_boot_idle(cx: &mut MaySleep, cpu: CpuId) -> Result<(), SpawnError> {
    let thread = obtain(cx)?;
    // SAFETY: nobody else knows the thread.
    unsafe { prepare(thread, idle_main) };
    name_idle(thread, cpu);
    Ok(())
}

/// Lays out a thread's stack so that it begins with `main`.
///
/// # Safety
///
/// The caller owns the thread, which has a stack that nothing uses.
unsafe fn prepare(thread: &'static Thread, main: extern "C" fn(usize) -> !) {
    // SAFETY: the caller owns the thread.
    let stack = unsafe { (*thread.stack.get()).as_ref() }.expect("a thread that starts has a stack");
    // SAFETY: nothing uses the stack, says the caller.
    unsafe { stack_depth::paint(thread, stack) };
    let top = stack.top();
    // SAFETY: `top` is the page-aligned end of a mapped stack that nothing uses.
    let context = unsafe { task::prepare(top, main, ptr::from_ref(thread).addr()) };
    // SAFETY: the caller owns the thread.
    unsafe { (*thread.context.get()).write(context) };
}

/// First function of the boot CPU's idle thread: interrupts off, preemption count 1 (`SCHED-9`).
extern "C" fn idle_main(_thread: usize) -> ! {
    finish_switch();
    idle::run()
}

/// First function on a new stack: interrupts off, preemption count 1 (`SCHED-9`).
extern "C" fn thread_main(_thread: usize) -> ! {
    finish_switch();
    irq::enable();
    context::preempt_enable();
    let thread = current();
    // SAFETY: the body was put there by `start` for this thread to take.
    let body = unsafe { (*thread.body.get()).take() }.expect("a thread has something to run");
    // SAFETY: the one token of this thread (CX-1); it holds no guard.
    let mut cx = unsafe { MaySleep::new() };
    body(&mut cx);
    exit(&mut cx)
}

/// The end of a thread.
fn exit(cx: &mut MaySleep) -> ! {
    cx.assert_may_sleep();
    let thread = current();
    thread.for_each_lock(|lock| panic!("{thread:?} ends and holds the mutex {lock}"));
    if let Some(hooks) = hooks() {
        (hooks.thread_exit)(thread);
    }
    leave_for_ever()
}
