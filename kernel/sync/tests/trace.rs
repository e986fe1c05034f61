//! Trace points on hosted machines, where the branch is a flag: CPUs, threads' numbers and NMIs.
#![cfg(not(any(loom, miri)))]

mod common;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::cpu;
use common::machine;
use grange_sync::{self as sync, nmi::as_nmi, smp, trace};

/// Gives every CPU a ring of `slots` records.
fn bring_memory(slots: usize) {
    for cpu in cpu::present().iter() {
        let bytes = (slots + 2) * trace::SLOT_BYTES;
        let layout = std::alloc::Layout::from_size_align(bytes, 128).unwrap();
        // SAFETY: a layout that is not empty.
        let memory = arch::hosted::host_call(|| unsafe { std::alloc::alloc_zeroed(layout) });
        let memory = NonNull::new(memory).expect("memory");
        // SAFETY: zeroed, aligned, as many bytes, and never freed.
        let block = unsafe { trace::Block::make(memory, bytes, 0, cpu.index()) };
        trace::install(cpu, block);
    }
}

#[test]
fn every_cpu_records_into_its_own_ring() {
    machine(3, |_| {
        let pass: fn(usize) = |_| sync::trace!("test_hosted.here", cpu = cpu::current().index());
        smp::call_all(pass, 0, true);
        bring_memory(8);
        assert_eq!(trace::switch("test_hosted.here", true), 1);
        smp::call_all(pass, 0, true);
        trace::switch("test_hosted.*", false);
        smp::call_all(pass, 0, true);
        for cpu in cpu::online().iter() {
            let cpus: [Option<u64>; 2] = {
                let mut events = trace::read(cpu).expect("a ring").map(|event| event.fields[0]);
                [events.next(), events.next()]
            };
            assert_eq!(cpus, [Some(cpu.index() as u64), None]);
        }
    });
}

#[test]
fn a_full_ring_survives_an_nmi_between_any_two_instructions() {
    static VISITS: AtomicU64 = AtomicU64::new(0);
    const ROOM: usize = 2;
    machine(1, |_| {
        bring_memory(ROOM);
        trace::switch("test_stepped.*", true);
        // With two slots, what the visits record comes round inside of the record that they interrupt.
        let boundaries = arch::step::single_step(
            || sync::trace!("test_stepped.outer", a = 1, b = !1_u64, c = 2, d = !2_u64),
            || {
                as_nmi(|| {
                    let number = VISITS.fetch_add(1, Ordering::Relaxed);
                    sync::trace!("test_stepped.inner", a = number, b = !number, c = number + 1, d = !(number + 1));
                });
            },
        );
        trace::switch("test_stepped.*", false);
        let counts = trace::counts(cpu::current()).expect("a ring");
        assert_eq!(VISITS.load(Ordering::Relaxed), boundaries);
        assert_eq!(counts.kept + counts.overwritten + counts.lost, boundaries + 1, "TR-2: {counts:?}");
        assert!(counts.lost > 0, "no visit came while the slot that it needs was being written: {counts:?}");
        let mut read = 0;
        for event in trace::read(cpu::current()).expect("a ring") {
            let [a, b, c, d] = event.fields;
            assert_eq!((b, d), (!a, !c), "torn: {event:?}");
            assert!(event.point.name.starts_with("test_stepped."));
            read += 1;
        }
        assert_eq!(read, counts.kept);
    });
}

#[test]
fn points_are_found_by_globs() {
    sync::trace!("test_globs.one");
    sync::trace!("test_globs.two", a = 1);
    for (globs, fits) in [("test_globs.*", true), ("test_globs.one,test_globs.t?o", true), ("test_globs.x", false)] {
        assert_eq!(trace::any_matches(globs), fits, "{globs}");
    }
    assert!(!trace::any_matches("test_globs.one,none.*"), "each has to fit something");
    assert!(trace::fits("a.*, b.c", "b.c") && !trace::fits("a.*,b.c", "b.d"));
}
