//! Starting the other CPUs: all at once, each doing its own initialisation.
//!
//! One INIT and two start-up messages go to everybody. Each CPU runs through the trampoline, finds
//! its slot by its APIC id, takes it (`WAITING` to `ARRIVED`), sets up its own segments, interrupt
//! table and APIC, and says that it is up. The boot CPU meanwhile only waits. Nothing is done one CPU after another.
//!
//! Which states a slot goes through, and why a CPU is never both up and given up, is told in `start_state`.
//!
//! - SMP-1: a CPU runs kernel code only after its compare-exchange from WAITING succeeded; one that
//!   comes too late, or that nobody knows, halts for good without a stack. It is online only after its
//!   compare-exchange to UP succeeded; one that was given up before that halts for good.
//! - SMP-2: waiting is bounded: ten seconds, and many rounds, without any CPU making progress end it.
//! - SMP-3: once `start_all` has returned, every CPU that is up is online, and nothing is broadcast if one was given up:
//!   it may be anywhere on its way.
//!
//! Answers to `arch/x86/kernel/smpboot.c` of Linux, which by default starts one after another.

use core::arch::global_asm;
use core::hint::spin_loop;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use raw_cpuid::CpuId as CpuidReader;
use spin::Once;
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::model_specific::Efer;

use super::apic_regs::{Delivery, Target};
use super::stacks::{self, Kind};
use super::start_state::{ARRIVED, GiveUp, Patience, StartState, WAITING};
use super::{apic, clock, gdt, idt, irq, trampoline};
use crate::{CpuId, CpuMask, MAX_CPUS, cpu, percpu};

/// Pause between INIT and start-up that real processors ask for; an emulated one does not.
const INIT_DELAY_US: u64 = 10_000;
/// Pause before the second start-up message.
const SECOND_STARTUP_NS: u64 = 200_000;

/// What a starting CPU needs before it has anything of its own. Layout known to the code below.
#[repr(C)]
struct Slot {
    /// Written by the boot CPU before WAITING.
    apic_id: AtomicU32,
    /// How far it has come.
    state: StartState,
    /// Top of its first stack. Written by the boot CPU before WAITING.
    stack: AtomicU64,
    /// Time-stamp counter at its first Rust instruction. Written by the CPU.
    arrived: AtomicU64,
    /// Time-stamp counter when it was up. Written by the CPU before UP.
    up: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self {
            apic_id: AtomicU32::new(0),
            state: StartState::new(),
            stack: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            up: AtomicU64::new(0),
        }
    }
}

/// Slot of each CPU, by CPU number. `UNUSED` ones are passed over: their state does not fit.
static SLOTS: [Slot; MAX_CPUS] = [const { Slot::new() }; MAX_CPUS];
/// CPUs that ran through the trampoline and were not wanted.
static STRAYS: AtomicU32 = AtomicU32::new(0);
/// Not 0: the APIC id is in CPUID leaf 0xb, for the id of leaf 1 has eight bits only.
static WIDE_IDS: AtomicU32 = AtomicU32::new(0);
/// The kernel's top table. Written before any CPU is started.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// The boot CPU's settings, which all CPUs share.
struct Shared {
    cr0: u64,
    cr4: u64,
    efer: u64,
    main: fn(CpuId),
}

static SHARED: Once<Shared> = Once::new();

unsafe extern "C" {
    fn grange_ap_entry();
}

/// Starts every CPU that is present and for which `stack_of` returns the top of a stack; null leaves
/// a CPU off. Each runs `main` with interrupts off, online, on its own per-CPU area; if `main`
/// returns the CPU idles with interrupts on.
///
/// Returns the CPUs that were to start and did not: each has cost a line in the log with its APIC
/// id. The wait for them is bounded.
///
/// Before: [`percpu::init_area`] and [`stacks::map`](super::stacks::map) for each CPU.
///
/// Context: boot CPU, task context.
pub fn start_all(main: fn(CpuId), stack_of: &mut dyn FnMut(CpuId) -> *mut u8) -> CpuMask {
    SHARED.call_once(|| Shared { cr0: Cr0::read_raw(), cr4: Cr4::read_raw(), efer: Efer::read_raw(), main });
    let wanted = fill_slots(stack_of);
    if !wanted.is_empty() {
        ROOT.store(Cr3::read().0.start_address().as_u64(), Ordering::Relaxed);
        WIDE_IDS.store(u32::from(apic::max_id() > 0xff), Ordering::Relaxed);
        // SAFETY: low memory is never handed to an allocator, no CPU is in an earlier trampoline
        // (each is up, or given up and halted), and the entry needs no stack.
        unsafe { trampoline::prepare(grange_ap_entry as *const () as u64) };
        wake(&wanted);
        wait_until_up(&wanted);
    }
    let missing = give_up(&wanted);
    clock::finish_calibration();
    missing
}

/// When a CPU arrived in the kernel and when it was up, in nanoseconds since boot.
pub fn start_times(cpu: CpuId) -> Option<(u64, u64)> {
    let slot = &SLOTS[cpu.index()];
    slot.state.is_up().then(|| {
        let time = |cycles: &AtomicU64| clock::cycles_to_ns(cycles.load(Ordering::Relaxed));
        (time(&slot.arrived), time(&slot.up))
    })
}

/// Whether a CPU came that nobody wanted. Broadcasts would reach it.
pub(super) fn strays_exist() -> bool {
    STRAYS.load(Ordering::Relaxed) != 0
}

fn fill_slots(stack_of: &mut dyn FnMut(CpuId) -> *mut u8) -> CpuMask {
    let mut wanted = CpuMask::EMPTY;
    for cpu in (cpu::present() - cpu::online()).iter() {
        let stack = stack_of(cpu);
        if stack.is_null() {
            continue;
        }
        assert!(stacks::is_mapped(cpu), "CPU {cpu} needs its stacks");
        let slot = &SLOTS[cpu.index()];
        slot.apic_id.store(cpu::apic_id(cpu), Ordering::Relaxed);
        slot.stack.store(stack as u64, Ordering::Relaxed);
        slot.state.expect_cpu();
        wanted.insert(cpu);
    }
    wanted
}

/// INIT, start-up, start-up: to everybody at once if everybody is wanted, else to each.
fn wake(wanted: &CpuMask) {
    let boot = CpuMask::of(cpu::current());
    let everybody = cpu::online() == boot && *wanted == cpu::present() - boot;
    let send = |delivery| {
        if everybody {
            apic::send(delivery, Target::AllButSelf);
        } else {
            wanted.iter().for_each(|cpu| apic::send(delivery, Target::Apic(cpu::apic_id(cpu))));
        }
    };
    let start_up = Delivery::StartUp((trampoline::PAGE >> 12) as u8);
    let emulated = CpuidReader::new().get_feature_info().is_some_and(|f| f.has_hypervisor());

    send(Delivery::Init);
    if !emulated {
        clock::udelay(INIT_DELAY_US);
    }
    send(start_up);
    let second = clock::now_ns() + SECOND_STARTUP_NS;
    while count(wanted, StartState::has_arrived) < wanted.count() {
        if clock::now_ns() >= second {
            // A CPU that runs already takes no notice.
            send(start_up);
            return;
        }
        spin_loop();
    }
}

/// How many CPUs of the mask have come that far.
fn count(wanted: &CpuMask, is_there: fn(&StartState) -> bool) -> usize {
    wanted.iter().filter(|cpu| is_there(&SLOTS[cpu.index()].state)).count()
}

fn wait_until_up(wanted: &CpuMask) {
    let mut patience = Patience::new(clock::now_ns());
    loop {
        let up = count(wanted, StartState::is_up);
        let progress = count(wanted, StartState::has_arrived) + up;
        if up == wanted.count() || !patience.goes_on(clock::now_ns(), progress) {
            return;
        }
        spin_loop();
    }
}

fn give_up(wanted: &CpuMask) -> CpuMask {
    let mut missing = CpuMask::EMPTY;
    for cpu in wanted.iter() {
        let what = match SLOTS[cpu.index()].state.give_up() {
            GiveUp::Up => {
                // It does so itself as well. Whoever is first, it is online when `start_all` returns (SMP-3).
                cpu::set_online(cpu, true);
                continue;
            }
            GiveUp::DidNotAnswer => "did not answer",
            GiveUp::Stopped => "stopped on its way",
        };
        log::error!("smp: CPU {cpu} (APIC id {}) {what}; going on without it", cpu::apic_id(cpu));
        missing.insert(cpu);
    }
    missing
}

/// Where a started CPU gets a stack; the rest is its own work.
///
/// # Safety
/// Called by the entry code only, once on each CPU, with the slot that the CPU has taken.
unsafe extern "C" fn ap_main(slot: &'static Slot) -> ! {
    slot.arrived.store(clock::cycles(), Ordering::Relaxed);
    let shared = SHARED.get().expect("start_all has set it");
    let index = (&raw const *slot as usize - SLOTS.as_ptr() as usize) / size_of::<Slot>();
    let cpu = CpuId::new(index);
    // SAFETY: the settings are those that the boot CPU runs with; this CPU is on the same tables.
    // The area of this CPU was made before it was started, its stacks are mapped, and the slot
    // belongs to it alone.
    unsafe {
        Cr0::write_raw(shared.cr0);
        Cr4::write_raw(shared.cr4);
        Efer::write_raw(shared.efer);
        percpu::load(cpu);
        gdt::load(|kind: Kind| stacks::top(cpu, kind));
    }
    idt::load();
    apic::enable();
    slot.up.store(clock::cycles(), Ordering::Relaxed);
    if !slot.state.come_up() {
        irq::park();
    }
    cpu::set_online(cpu, true);
    (shared.main)(cpu);
    loop {
        irq::disable();
        irq::halt_with_irqs();
    }
}

global_asm!(
    ".pushsection .text.grange_ap_entry, \"ax\"",
    ".globl grange_ap_entry",
    "grange_ap_entry:",
    "cmpl $0, {wide_ids}(%rip)",
    "jne 1f",
    "movl $1, %eax",
    "cpuid",
    "shrl $24, %ebx",
    "movl %ebx, %edi",
    "jmp 2f",
    "1:",
    "movl $0xb, %eax",
    "xorl %ecx, %ecx",
    "cpuid",
    "movl %edx, %edi",
    // edi: the APIC id. Look for a slot that waits for it.
    "2:",
    "leaq {slots}(%rip), %rsi",
    "movl ${cpus}, %ecx",
    "3:",
    "cmpl %edi, {apic_id}(%rsi)",
    "jne 4f",
    "movl ${waiting}, %eax",
    "movl ${arrived}, %edx",
    "lock cmpxchgl %edx, {state}(%rsi)",
    "je 5f",
    "4:",
    "addq ${slot_size}, %rsi",
    "decl %ecx",
    "jnz 3b",
    // Nobody waits for this CPU (SMP-1).
    "lock incl {strays}(%rip)",
    "6:",
    "cli",
    "hlt",
    "jmp 6b",
    "5:",
    "movq {root}(%rip), %rax",
    "movq %rax, %cr3",
    "movq {stack}(%rsi), %rsp",
    "xorl %ebp, %ebp",
    "movq %rsi, %rdi",
    "call {main}",
    "ud2",
    ".popsection",
    wide_ids = sym WIDE_IDS,
    slots = sym SLOTS,
    cpus = const MAX_CPUS,
    apic_id = const offset_of!(Slot, apic_id),
    state = const offset_of!(Slot, state),
    stack = const offset_of!(Slot, stack),
    slot_size = const size_of::<Slot>(),
    waiting = const WAITING,
    arrived = const ARRIVED,
    strays = sym STRAYS,
    root = sym ROOT,
    main = sym ap_main,
    options(att_syntax),
);
