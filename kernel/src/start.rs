//! The boot, from the loader's jump to the shell.
//!
//! Each storey is brought up on those below it, in the order in which it can work:
//!
//! 1. the machine: serial ports, descriptor tables, APIC; then the log has somewhere to go;
//! 2. the command line, so that everything after it is what was asked for;
//! 3. ACPI: which CPUs, nodes and memory there are;
//! 4. memory: the buddy allocator of each node;
//! 5. per-CPU areas and stacks, each in memory of its CPU's own node; the boot CPU moves to its own;
//! 6. interrupt handlers; then `slab`, `sched` (from here on this is a thread), `rcu` and `kfree_rcu`;
//! 7. all other CPUs, at once, and the watchdogs over them;
//! 8. what `grange.run=` asks for.
//!
//! Linux: `start_kernel` in `init/main.c`.

use arch::bare::stacks::{self, Kind};
use arch::bare::{boot, smp, topology};
use arch::exit::{Verdict, debug_exit};
use arch::{CpuId, NodeId, PAGE_SIZE, PhysAddr, VirtAddr, clock, cpu, percpu};
use arrayvec::ArrayVec;
use bootloader_api::config::Mapping;
use bootloader_api::info::MemoryRegionKind;
use bootloader_api::{BootInfo, BootloaderConfig, entry_point};
use grange_kernel::regions::{self, OnNode};
use mm::{AllocFlags, Region};
use sync::MaySleep;

use crate::{cmdline, console, crash, panic, shell};

/// Where all physical memory is mapped: as in Linux with four-level tables.
const PHYSICAL_AT: u64 = 0xffff_8880_0000_0000;

/// The boot thread's stack, which the first tests may run on, in bytes.
const STACK_SIZE: u64 = 128 * 1024;

/// What is asked of the loader.
static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = STACK_SIZE;
    config.mappings.physical_memory = Some(Mapping::FixedAddress(PHYSICAL_AT));
    config
};

entry_point!(start, config = &CONFIG);

fn start(info: &'static mut BootInfo) -> ! {
    let info = &*info;
    start_machine(info);
    topology::discover();
    start_memory(info);
    start_areas();
    sync::explore::init(cmdline::SEED.get());

    sync::init();
    panic::init();
    mm::init_percpu();
    slab::init();
    // SAFETY: no token has been made on this flow.
    let mut cx = unsafe { sched::init() }.expect("memory for the first threads");
    start_tracing();
    rcu::init(&mut cx);
    kfree_rcu::init(&mut cx);

    start_other_cpus();
    sched::watchdog::start(&mut cx).expect("memory for a thread");
    report();
    mm::inject::init(cmdline::SEED.get());
    slab::fail::init(cmdline::SEED.get(), &mut cx);
    rcu::boot_ended();
    run(&mut cx)
}

/// Steps 1 and 2.
fn start_machine(info: &BootInfo) {
    let phys_offset = info.physical_memory_offset.into_option().expect("CONFIG asks for it");
    assert!(
        phys_offset == PHYSICAL_AT,
        "the loader mapped memory at {phys_offset:#x} and not where CONFIG asks for it"
    );
    let args = boot::BootArgs {
        phys_offset: VirtAddr::new(phys_offset),
        rsdp: info.rsdp_addr.into_option().map(PhysAddr::new),
    };
    // SAFETY: first of all, on the boot CPU, interrupts off, on the stack that the loader made for
    // the kernel; `phys_offset` is where the loader says that memory is mapped.
    unsafe { boot::init_early(args) };
    sync::log::init(log::LevelFilter::Info);
    console::init();
    cmdline::parse(command_line(info));
    sync::log::init(cmdline::LOGLEVEL.get().parse().unwrap_or(log::LevelFilter::Info));
    crash::strike_early(cmdline::CRASH.get());
}

/// The command line, which the loader passes as the ramdisk.
fn command_line(info: &BootInfo) -> &'static [u8] {
    let Some(at) = info.ramdisk_addr.into_option() else {
        return &[];
    };
    // SAFETY: the loader put that many bytes there, in memory that it keeps back for good.
    unsafe { core::slice::from_raw_parts(at as *const u8, info.ramdisk_len as usize) }
}

/// Step 4: what the loader left, cut up by node, goes to the page allocator.
fn start_memory(info: &BootInfo) {
    let affinity = topology::memory_ranges().iter().map(|range| OnNode {
        start: range.start,
        end: range.start.saturating_add(range.len),
        node: range.node.index(),
    });
    let mut free: ArrayVec<Region, { mm::init::MAX_REGIONS }> = ArrayVec::new();
    for region in info.memory_regions.iter().filter(|r| r.kind == MemoryRegionKind::Usable) {
        regions::cut(region.start, region.end, affinity.clone(), |piece| {
            let region = Region {
                start: PhysAddr::new(piece.start),
                end: PhysAddr::new(piece.end),
                node: NodeId::new(piece.node),
            };
            if free.try_push(region).is_err() {
                log::warn!("too many pieces of memory: {:#x} to {:#x} left out", piece.start, piece.end);
            }
        });
    }
    // SAFETY: usable memory is what the loader left to the kernel, and nothing has used it so far;
    // low memory, the loader's and the kernel's own are not usable in its map.
    unsafe { mm::init(&free) };
}

/// Step 5.
fn start_areas() {
    let order = (percpu::area_size() / PAGE_SIZE).ilog2() as usize;
    for id in cpu::present().iter() {
        let node = Some(cpu::node_of(id));
        let pages = mm::alloc_pages(order, node, AllocFlags::NOWAIT);
        let area = pages.expect("memory for the per-CPU areas").virt();
        // SAFETY: fresh pages, aligned to their size and as many as an area has, never given back;
        // no CPU runs on an older area but this one, on the template.
        unsafe { percpu::init_area(id, area) };
        let mut frame = || mm::alloc_pages(0, node, AllocFlags::NOWAIT).ok().map(|page| page.phys());
        // SAFETY: each frame is fresh and never given back.
        unsafe { stacks::map(id, &mut frame) }.expect("memory for the stacks of the CPUs");
    }
    // SAFETY: once, on the boot CPU, interrupts off, its area and stacks just made; no pointer to a
    // per-CPU variable is kept here.
    unsafe { boot::adopt() };
}

/// The trace points of the command line, from before the first grace period on.
fn start_tracing() {
    if sync::trace::ON.is_set() {
        mm::trace::bring_memory().expect("memory for the trace rings of the CPUs");
        sync::trace::switch(sync::trace::ON.get(), true);
    }
}

/// Step 7.
fn start_other_cpus() {
    let limit = cmdline::MAXCPUS.get() as usize;
    let mut stack_of = |id: CpuId| match id.index() < limit {
        true => stacks::top(id, Kind::Main) as *mut u8,
        false => core::ptr::null_mut(),
    };
    let missing = smp::start_all(other_cpu, &mut stack_of);
    if !missing.is_empty() {
        log::error!("CPUs {missing} did not start; going on without them");
    }
}

/// What every other CPU does once it is up.
fn other_cpu(id: CpuId) {
    sched::start_secondary(id)
}

fn report() {
    let nodes = cpu::nodes_online().count_ones();
    let s = if nodes == 1 { "" } else { "s" };
    let memory = (mm::stats::managed_pages() * PAGE_SIZE) >> 20;
    log::info!(
        "grange {}: CPUs {} online, {nodes} node{s}, {memory} MiB, {} ms after reset",
        env!("CARGO_PKG_VERSION"),
        cpu::online(),
        clock::now_ns() / 1_000_000,
    );
}

/// Step 8.
fn run(cx: &mut MaySleep) -> ! {
    if !cmdline::EXEC.get().is_empty() {
        shell::execute(cx, cmdline::EXEC.get());
    }
    match cmdline::RUN.get() {
        "test" => run_suites(cx, Suites::Tests),
        "bench" => run_suites(cx, Suites::Benches),
        "torture" => run_suites(cx, Suites::Torture),
        _ => shell::interact(cx),
    }
}

/// What `grange.run=` may choose of the suites.
#[derive(Clone, Copy)]
enum Suites {
    Tests,
    Benches,
    Torture,
}

#[cfg(feature = "suites")]
fn run_suites(cx: &mut MaySleep, which: Suites) -> ! {
    use tests::com2::Com2;
    use tests::torture::{config, torture};
    use tests::{BENCHES, Filter, Plan, TESTS, run};

    let plan = Plan {
        filter: Filter::new(cmdline::FILTER.get()),
        slow: cmdline::SPEED.get().is_empty(),
        start_at: Some(cmdline::TEST_START.get()).filter(|id| !id.is_empty()),
        seed: cmdline::SEED.get(),
    };
    let summary = match which {
        Suites::Tests => run(TESTS.iter(), &plan, cx, &mut Com2),
        Suites::Benches => run(BENCHES.iter().map(|bench| &bench.case), &plan, cx, &mut Com2),
        Suites::Torture => torture(&config::request(plan.seed), cx, &mut Com2),
    };
    log::info!("suites: {} passed, {} failed, {} skipped", summary.passed, summary.failed, summary.skipped);
    sync::log::flush();
    debug_exit(if summary.is_pass() { Verdict::Pass } else { Verdict::Fail })
}

#[cfg(not(feature = "suites"))]
fn run_suites(_: &mut MaySleep, _: Suites) -> ! {
    log::error!("this kernel was built without its suites");
    debug_exit(Verdict::Fail)
}
