//! Numbers of the local APIC: register offsets and the encodings of its commands.
//!
//! Pure functions, tested on the host. x2APIC and TSC deadline do not exist in the emulator that
//! CI runs, so these tests are all that covers their encodings.
//!
//! Context: any. Answers to `arch/x86/include/asm/apicdef.h` of Linux; Intel SDM volume 3, chapter 11.

/// A register, as its byte offset in the xAPIC page.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u16)]
pub(super) enum Reg {
    /// Id of this APIC.
    Id = 0x020,
    /// Task priority.
    TaskPriority = 0x080,
    /// End of interrupt.
    Eoi = 0x0b0,
    /// Spurious vector and software enable.
    Spurious = 0x0f0,
    /// Interrupt command, low half. All of it in x2APIC mode.
    Command = 0x300,
    /// Interrupt command, high half: the destination. xAPIC only.
    CommandHigh = 0x310,
    /// Timer entry of the local vector table.
    LvtTimer = 0x320,
    /// LINT0 entry.
    LvtLint0 = 0x350,
    /// LINT1 entry.
    LvtLint1 = 0x360,
    /// Error entry.
    LvtError = 0x370,
    /// Timer: initial count.
    TimerInitial = 0x380,
    /// Timer: current count.
    TimerCurrent = 0x390,
    /// Timer: divide configuration.
    TimerDivide = 0x3e0,
    /// Self IPI. x2APIC only.
    SelfIpi = 0x3f0,
}

impl Reg {
    /// Number of the model-specific register that is this register in x2APIC mode.
    pub(super) const fn msr(self) -> u32 {
        0x800 + ((self as u32) >> 4)
    }
}

/// What an inter-processor interrupt does.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Delivery {
    /// Raises this vector.
    Fixed(u8),
    /// Raises an NMI.
    Nmi,
    /// Resets the CPU into its wait for a start-up message.
    Init,
    /// Starts the CPU in real mode at this 4 KiB page below 1 MiB.
    StartUp(u8),
}

/// Whom it goes to.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// The APIC with this id.
    Apic(u32),
    /// The sender itself.
    Myself,
    /// Every other CPU of the machine, started or not.
    AllButSelf,
}

/// Send pending, in the low half of an xAPIC's command register.
pub(super) const SEND_PENDING: u32 = 1 << 12;
/// Level assert. Set for every command but INIT de-assert, which is not used.
const ASSERT: u32 = 1 << 14;

/// The low half of the command register.
pub(super) const fn command_low(delivery: Delivery, target: Target) -> u32 {
    let (mode, vector) = match delivery {
        Delivery::Fixed(vector) => (0, vector as u32),
        Delivery::Nmi => (4, 0),
        Delivery::Init => (5, 0),
        Delivery::StartUp(page) => (6, page as u32),
    };
    let shorthand = match target {
        Target::Apic(_) => 0,
        Target::Myself => 1,
        Target::AllButSelf => 3,
    };
    shorthand << 18 | ASSERT | mode << 8 | vector
}

/// The high half of an xAPIC's command register.
pub(super) const fn command_high(target: Target) -> u32 {
    match target {
        Target::Apic(id) => id << 24,
        Target::Myself | Target::AllButSelf => 0,
    }
}

/// The whole command register in x2APIC mode.
pub(super) const fn x2apic_command(delivery: Delivery, target: Target) -> u64 {
    let destination = match target {
        Target::Apic(id) => id as u64,
        Target::Myself | Target::AllButSelf => 0,
    };
    destination << 32 | command_low(delivery, target) as u64
}

/// The id, from the value of an xAPIC's id register.
pub(super) const fn xapic_id(register: u32) -> u32 {
    register >> 24
}

/// How the timer counts.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum TimerMode {
    /// Once, down from the initial count.
    OneShot,
    /// Again and again.
    Periodic,
    /// Until the time-stamp counter reaches a deadline.
    TscDeadline,
}

/// Masks an entry of the local vector table.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// An entry that delivers an NMI.
pub(super) const LVT_NMI: u32 = 4 << 8;

/// The timer's entry in the local vector table.
pub(super) const fn lvt_timer(mode: TimerMode, vector: u8) -> u32 {
    let mode = match mode {
        TimerMode::OneShot => 0,
        TimerMode::Periodic => 1,
        TimerMode::TscDeadline => 2,
    };
    mode << 17 | vector as u32
}

/// Divide configuration: count at the full rate.
pub(super) const DIVIDE_BY_1: u32 = 0b1011;
/// The spurious-vector register's software-enable bit.
pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_match_the_manuals_values() {
        assert_eq!(command_low(Delivery::Fixed(0xfd), Target::Apic(3)), 0x40fd);
        assert_eq!(command_low(Delivery::Nmi, Target::Apic(3)), 0x4400);
        assert_eq!(command_low(Delivery::Nmi, Target::AllButSelf), 0xc_4400);
        assert_eq!(command_low(Delivery::Init, Target::AllButSelf), 0xc_4500);
        assert_eq!(command_low(Delivery::StartUp(8), Target::AllButSelf), 0xc_4608);
        assert_eq!(command_low(Delivery::Fixed(0xf6), Target::Myself), 0x4_40f6);
    }

    #[test]
    fn an_xapic_destination_is_the_top_byte() {
        assert_eq!(command_high(Target::Apic(0xab)), 0xab00_0000);
        assert_eq!(command_high(Target::AllButSelf), 0);
        assert_eq!(xapic_id(0x0500_0000), 5);
    }

    #[test]
    fn an_x2apic_destination_has_thirty_two_bits() {
        let command = x2apic_command(Delivery::Fixed(0x30), Target::Apic(0x1_0002));
        assert_eq!(command, 0x0001_0002_0000_4030);
    }

    #[test]
    fn x2apic_registers_lie_sixteen_bytes_to_one() {
        assert_eq!(Reg::Id.msr(), 0x802);
        assert_eq!(Reg::Eoi.msr(), 0x80b);
        assert_eq!(Reg::Spurious.msr(), 0x80f);
        assert_eq!(Reg::Command.msr(), 0x830);
        assert_eq!(Reg::LvtTimer.msr(), 0x832);
        assert_eq!(Reg::TimerDivide.msr(), 0x83e);
        assert_eq!(Reg::SelfIpi.msr(), 0x83f);
    }

    #[test]
    fn timer_modes_are_bits_17_and_18() {
        assert_eq!(lvt_timer(TimerMode::OneShot, 0xec), 0xec);
        assert_eq!(lvt_timer(TimerMode::Periodic, 0xec), 0x2_00ec);
        assert_eq!(lvt_timer(TimerMode::TscDeadline, 0xec), 0x4_00ec);
    }
}
