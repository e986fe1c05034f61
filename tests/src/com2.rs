//! The report as frames on the second serial port, and the proof that time goes on.
//!
//! While a run is on, a timer sends a heartbeat now and then, so that
//! whoever watches can tell a slow guest from a stuck one. It also watches the test that is running:
//! one that takes several times its budget is stuck, and the kernel is told so.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use sched::Timer;
use sync::{ATOMIC, Once, SpinLock, events, lock_class};

use crate::frame::{FrameWriter, Kind};
use crate::report::{Output, Start};
use crate::run::Summary;

/// Time between two heartbeats, in nanoseconds of guest time.
const HEARTBEAT_NS: u64 = 250_000_000;

/// A test is stuck when it takes this many times its budget: an emulated machine on a busy host may
/// well be several times slower than on a quiet one.
const STUCK_FACTOR: u64 = 4;

/// So many periods without a heartbeat are no accident.
const SILENCE_FACTOR: u64 = 12;

/// The stream, and whether a run is on (then the first frame is out and the last is not).
struct Stream {
    frames: FrameWriter,
    open: bool,
    events: events::Reader,
}

impl Stream {
    fn write(&mut self, kind: Kind, payload: fmt::Arguments<'_>) {
        self.frames.write(kind, payload, &mut arch::console::write_com2);
    }

    /// Sends what the rolling hash of events has been since.
    fn write_events(&mut self) {
        while let Some(points) = self.events.take() {
            self.write(Kind::Events, format_args!("{points}"));
        }
    }
}

/// Protects the port and the frame numbers. Taken in any context but NMI, with interrupts off; the
/// heartbeat only tries. Nests in nothing, and nothing in it.
static STREAM: SpinLock<Stream> = SpinLock::new(
    Stream { frames: FrameWriter::new(), open: false, events: events::Reader::new() },
    lock_class!("tests.com2"),
);

/// Calls [`heartbeat`] while a run is on.
static TIMER: Timer = Timer::new(|_| heartbeat());

/// When the running test is stuck, `u64::MAX` while none runs. Written by the runner, read by the
/// heartbeat; a stale value only shifts the verdict by a tick.
static DEADLINE_NS: AtomicU64 = AtomicU64::new(u64::MAX);

/// When the last heartbeat was. Written by the heartbeat, read by whoever asks whether it has stopped.
static LAST_BEAT_NS: AtomicU64 = AtomicU64::new(0);

/// What to do about a stuck test.
static ON_STUCK: Once<fn()> = Once::new();

/// Frames on COM2.
pub struct Com2;

impl Com2 {
    fn frame(&mut self, kind: Kind, payload: fmt::Arguments<'_>) {
        let mut stream = STREAM.lock_irqsave(ATOMIC);
        // From the first frame on heartbeats may join in.
        stream.open = true;
        stream.write(kind, payload);
        stream.write_events();
    }
}

impl Output for Com2 {
    fn start(&mut self, start: &Start) {
        let Start { seed, cpus, nodes, build } = start;
        TIMER.arm_in(HEARTBEAT_NS);
        self.frame(
            Kind::Start,
            format_args!(r#"{{"v":1,"seed":{seed},"cpus":{cpus},"nodes":{nodes},"build":"{build}"}}"#),
        );
    }

    fn begin(&mut self, suite: &str, name: &str, budget_ms: u32) {
        let com1 = log_length();
        self.frame(
            Kind::Begin,
            format_args!(r#"{{"suite":"{suite}","name":"{name}","budget_ms":{budget_ms},"com1":{com1}}}"#),
        );
    }

    fn ktap(&mut self, line: fmt::Arguments<'_>) {
        self.frame(Kind::Ktap, line);
    }

    fn figure(&mut self, object: fmt::Arguments<'_>) {
        self.frame(Kind::Json, object);
    }

    fn end(&mut self, summary: &Summary) {
        let Summary { planned, passed, failed, skipped } = summary;
        let com1 = log_length();
        // One hold of the lock: no heartbeat may come between the count and the last frame.
        let mut stream = STREAM.lock_irqsave(ATOMIC);
        stream.open = false;
        stream.write_events();
        let frames = stream.frames.count();
        let payload = format_args!(
            r#"{{"planned":{planned},"passed":{passed},"failed":{failed},"skipped":{skipped},"frames":{frames},"com1":{com1}}}"#
        );
        stream.write(Kind::End, payload);
    }
}

/// How many bytes of log are out on COM1, after all that was logged so far: whoever reads both ports finds a test's part
/// of the log by it. Without it nobody could, for the other side reads each port when it likes.
fn log_length() -> u64 {
    sync::log::drain();
    arch::console::com1_written()
}

/// Says what to do when a test is stuck. Called in the timer interrupt; does not return.
///
/// Context: boot, once; a second call changes nothing.
pub fn on_stuck(func: fn()) {
    ON_STUCK.call_once(|| func);
}

/// Whether this boot, of which a test run is expected, makes no progress: its test takes far too long, or there has been no
/// heartbeat for many times its period, because the CPU that sends it is stuck or never came so far.
///
/// Context: any, NMI included.
pub fn seems_stuck() -> bool {
    let now = arch::clock::now_ns();
    let silent = now.saturating_sub(LAST_BEAT_NS.load(Ordering::Relaxed));
    now > DEADLINE_NS.load(Ordering::Relaxed) || silent > SILENCE_FACTOR * HEARTBEAT_NS
}

/// Sets when the running test is stuck, or that none runs. Context: the runner.
pub(crate) fn set_deadline(budget_ms: Option<u32>) {
    let deadline = budget_ms.map_or(u64::MAX, |ms| arch::clock::now_ns() + u64::from(ms) * 1_000_000 * STUCK_FACTOR);
    DEADLINE_NS.store(deadline, Ordering::Relaxed);
}

/// Sends a heartbeat, looks after the running test, and comes back later.
///
/// Context: timer interrupt of the CPU that began the run. Takes the stream's lock only if it is free.
fn heartbeat() {
    let ns = arch::clock::now_ns();
    LAST_BEAT_NS.store(ns, Ordering::Relaxed);
    if ns > DEADLINE_NS.load(Ordering::Relaxed)
        && let Some(stuck) = ON_STUCK.get()
    {
        stuck();
    }
    if let Some(mut stream) = STREAM.try_lock_irqsave(ATOMIC) {
        if !stream.open {
            return;
        }
        stream.write(Kind::Heartbeat, format_args!(r#"{{"ticks":{},"ns":{ns}}}"#, sched::tick::count()));
        stream.write_events();
    }
    TIMER.arm_in(HEARTBEAT_NS);
}
