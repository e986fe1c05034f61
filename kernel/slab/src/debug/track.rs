//! Who allocated an object, and who freed it last (`U`).

use core::fmt;

use arch::CpuId;

/// Callers that are kept.
const FRAMES: usize = 12;

/// One call: where it came from, on which CPU, in which thread and when. All zero where there was none yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Track {
    /// Return addresses, innermost first; 0 behind the last.
    frames: [u64; FRAMES],
    when_ns: u64,
    tid: u64,
    cpu: u64,
}

impl Track {
    /// No call.
    pub(crate) const NONE: Self = Self { frames: [0; FRAMES], when_ns: 0, tid: 0, cpu: 0 };

    /// The call that the caller is in.
    #[inline(never)]
    pub(crate) fn here() -> Self {
        let mut frames = [0; FRAMES];
        let (mut slots, mut inside) = (frames.iter_mut(), true);
        arch::backtrace::current(&mut |ip| {
            // The first is in this function.
            if !core::mem::take(&mut inside)
                && let Some(slot) = slots.next()
            {
                *slot = ip;
            }
        });
        let cpu = arch::cpu::current().index() as u64;
        Self { frames, when_ns: arch::clock::now_ns(), tid: sched::current().tid(), cpu }
    }

    /// Whether there was such a call.
    pub fn is_some(&self) -> bool {
        self.frames[0] != 0 || self.when_ns != 0
    }

    /// Return addresses, innermost first.
    pub fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames.iter().copied().take_while(|&ip| ip != 0)
    }

    /// The CPU it was on.
    pub fn cpu(&self) -> CpuId {
        CpuId::new(self.cpu as usize)
    }

    /// The thread it was in, or that it interrupted.
    pub fn tid(&self) -> u64 {
        self.tid
    }
}

/// In one line and one for each frame.
impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.when_ns / 1_000;
        write!(f, "on CPU {} by thread {} at {}.{:06}", self.cpu, self.tid, us / 1_000_000, us % 1_000_000)?;
        self.frames().enumerate().try_for_each(|(n, ip)| write!(f, "\n  #{n} {ip:#018x}"))
    }
}
