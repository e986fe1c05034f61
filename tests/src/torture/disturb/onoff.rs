//! CPUs that go and come (`torture.onoff_interval`, `torture.onoff_holdoff`).
//!
//! Linux: `torture_onoff` in `kernel/torture.c` (6.12).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::{CpuId, CpuMask, clock, cpu};
use sched::{HotplugError, Prio, cpu_off, cpu_on};
use sync::{MaySleep, Rng};

use crate::together::MS;
use crate::torture::{Ongoing, Stat, config, control};
use crate::{Failure, skip, torture};

/// One direction: how often it was tried and done, and how long it took.
#[derive(Default)]
struct Way {
    tries: AtomicU64,
    done: AtomicU64,
    longest_us: AtomicU64,
    /// There was no memory for a part of the CPU, which is allowed.
    no_memory: AtomicU64,
}

impl Way {
    /// Does it once. No memory is counted, all else is a failure.
    fn go(&self, what: &str, cpu: CpuId, act: impl FnOnce() -> Result<(), HotplugError>) -> Result<bool, Failure> {
        self.tries.fetch_add(1, Relaxed);
        let begun = clock::now_ns();
        match act() {
            Ok(()) => {
                self.done.fetch_add(1, Relaxed);
                self.longest_us.fetch_max((clock::now_ns() - begun) / 1_000, Relaxed);
                Ok(true)
            }
            Err(HotplugError::NoMemory) => {
                self.no_memory.fetch_add(1, Relaxed);
                Ok(false)
            }
            Err(error) => Err(crate::__failed!("CPU {cpu} {what}: {error}")),
        }
    }
}

#[derive(Default)]
struct Toggling {
    off: Way,
    on: Way,
}

impl Toggling {
    fn torture(&self, interval_ns: u64, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let toggled: CpuMask = cpu::online() - CpuMask::of(CpuId::BOOT);
        let holdoff = u64::from(config::ONOFF_HOLDOFF.get()) * 1_000 * MS;
        let mut over = control::rest(cx, holdoff);
        while !over {
            if let Some(cpu) = toggled.iter().nth(rng.index(toggled.count())) {
                match cpu::is_online(cpu) {
                    true => self.off.go("off", cpu, || cpu_off(cpu, cx))?,
                    false => self.on.go("on", cpu, || cpu_on(cpu, cx))?,
                };
            }
            over = control::rest(cx, interval_ns);
        }
        for cpu in (toggled - cpu::online()).iter() {
            while !self.on.go("on", cpu, || cpu_on(cpu, cx))? {
                sched::sleep_ns(cx, 10 * MS);
            }
        }
        Ok(())
    }
}

impl Ongoing for Arc<Toggling> {
    fn stat(&self, out: &mut Stat) {
        out.work("off", self.off.done.load(Relaxed));
        out.work("on", self.on.done.load(Relaxed));
        let tries = |way: &Way| way.tries.load(Relaxed);
        out.text("tries", format_args!("{}:{}", tries(&self.off), tries(&self.on)));
        let longest = |way: &Way| way.longest_us.load(Relaxed);
        out.text("longest_us", format_args!("{}:{}", longest(&self.off), longest(&self.on)));
        out.count("no_memory", self.off.no_memory.load(Relaxed) + self.on.no_memory.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        Ok(())
    }
}

torture! {
    /// CPUs go and come, one every torture.onoff_interval milliseconds
    #[disturber]
    fn onoff(run: &mut Run) {
        let interval = u64::from(config::ONOFF_INTERVAL.get()) * MS;
        if interval == 0 {
            skip!("torture.onoff_interval=0");
        }
        if cpu::online_count() == 1 {
            return Err(crate::__failed!("no CPU can go: the machine has one"));
        }
        let toggling = Arc::new(Toggling::default());
        let (mine, rng) = (toggling.clone(), run.rng("onoff"));
        run.spawn("onoff", Prio::HIGH, None, move |cx| mine.torture(interval, rng, cx))?;
        Ok(toggling)
    }
}
