//! Counters of known frequency that others are measured against.
//!
//! The ACPI power-management timer, or channel 2 of the PIT where no FADT names one.
//! Answers to `arch/x86/kernel/tsc.c` (`pit_calibrate_tsc`, `acpi_pm_read_early`) of Linux.

use x86_64::instructions::port::Port;

const PM_TIMER_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const SPEAKER_GATE: u16 = 0x61;
/// Channel 2, low byte then high byte, mode 2 (count down, begin again).
const PIT_RATE: u8 = 0xb4;
/// Channel 2, latch the count for the next two reads.
const PIT_LATCH: u8 = 0x80;

/// A counter that wraps.
#[derive(Copy, Clone, Debug)]
pub(super) enum Reference {
    /// Counts up, 24 bits: wraps after 4.68 s.
    PmTimer(u16),
    /// Counts down, 16 bits: wraps after 54 ms.
    Pit,
}

impl Reference {
    /// The best counter of the machine, running.
    pub(super) fn choose(pm_timer: Option<u16>) -> Self {
        if let Some(port) = pm_timer {
            return Self::PmTimer(port);
        }
        // SAFETY: opens the gate of channel 2 with the speaker off, and sets it to count down from
        // 65,536 again and again; nobody else uses that channel.
        unsafe {
            let gate: u8 = Port::new(SPEAKER_GATE).read();
            Port::new(SPEAKER_GATE).write(gate & !2 | 1);
            Port::new(PIT_COMMAND).write(PIT_RATE);
            Port::new(PIT_CHANNEL_2).write(0u8);
            Port::new(PIT_CHANNEL_2).write(0u8);
        }
        Self::Pit
    }

    pub(super) fn hz(self) -> u64 {
        match self {
            Self::PmTimer(_) => PM_TIMER_HZ,
            Self::Pit => PIT_HZ,
        }
    }

    /// Ticks after which it wraps.
    pub(super) fn period(self) -> u64 {
        match self {
            Self::PmTimer(_) => 1 << 24,
            Self::Pit => 1 << 16,
        }
    }

    /// The count, always upwards.
    pub(super) fn read(self) -> u64 {
        match self {
            Self::PmTimer(port) => {
                // SAFETY: the port that the FADT names as the timer; reading it has no effect.
                let count: u32 = unsafe { Port::new(port).read() };
                u64::from(count & 0xff_ffff)
            }
            Self::Pit => {
                // SAFETY: latches the count of channel 2 and reads its two bytes.
                let count = unsafe {
                    Port::new(PIT_COMMAND).write(PIT_LATCH);
                    let mut channel = Port::<u8>::new(PIT_CHANNEL_2);
                    u16::from_le_bytes([channel.read(), channel.read()])
                };
                u64::from(count.wrapping_neg())
            }
        }
    }

    /// Ticks from one reading to a later one, less than a period apart.
    pub(super) fn elapsed(self, from: u64, to: u64) -> u64 {
        to.wrapping_sub(from) & (self.period() - 1)
    }
}
