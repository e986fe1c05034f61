use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec::Vec;

use super::fixture::*;
use crate::{CpuId, cpu, ipi, percpu};

crate::per_cpu! {
    static BYTE: u8 = 200;
    static HALF: u16 = 1;
    static WORD: u32 = 2;
    static LONG: u64 = 3;
    static SIGNED: i32 = -5;
    static FLAG: bool = true;
    static POINTER: *mut u8 = core::ptr::null_mut();
    static STRUCT: [u64; 5] = [1, 2, 3, 4, 5];
    static NUMBER: usize = 0;
    static OUTSIDE: u64 = 7;
    static STORM: u64 = 0;
    static NMIS_THAT_COUNTED: u64 = 0;
}

#[test]
fn each_width_is_read_written_and_counted_by_itself() {
    machine(1, || {
        BYTE.add(100);
        assert_eq!(BYTE.get(), 44, "a byte wraps and does not carry into its neighbour");
        HALF.sub(2);
        assert_eq!(HALF.get(), u16::MAX);
        WORD.or(5);
        WORD.and(0xe);
        assert_eq!(WORD.get(), 6);
        LONG.set(1 << 40);
        LONG.inc();
        assert_eq!(LONG.get(), (1 << 40) + 1);
        assert_eq!(LONG.xchg(7), (1 << 40) + 1);
        SIGNED.add_const::<-3>();
        assert_eq!(SIGNED.get(), -8);
        assert!(FLAG.xchg(false) && !FLAG.get());
        assert!(WORD.sub_and_is_zero(6) && !WORD.sub_and_is_zero(6));
        HALF.set(2);
        assert!(!HALF.dec_and_is_zero() && HALF.dec_and_is_zero());
        assert_eq!(LONG.cmpxchg(8, 9), Err(7));
        assert_eq!(LONG.cmpxchg(7, 9), Ok(7));
        assert_eq!(LONG.get(), 9);
        let mut target = 3u8;
        POINTER.set(&raw mut target);
        // SAFETY: the pointer that was just stored.
        assert_eq!(unsafe { *POINTER.get() }, 3);
    });
}

#[test]
fn a_cpu_sees_its_own_copy_and_others_see_it_by_number() {
    fn count_to_own_number(cpu: CpuId) {
        for _ in 0..cpu.index() * 1000 {
            NUMBER.inc();
        }
        // SAFETY: this CPU's own copy.
        unsafe { (*STRUCT.this_ptr())[4] += cpu.index() as u64 };
        READY.fetch_add(1, Ordering::Release);
    }
    static READY: AtomicU64 = AtomicU64::new(0);
    READY.store(0, Ordering::Relaxed);
    boot_and_look(count_to_own_number, &READY);
    // The second machine starts from the same initial values.
    READY.store(0, Ordering::Relaxed);
    boot_and_look(count_to_own_number, &READY);
}

fn boot_and_look(ap_main: fn(CpuId), ready: &'static AtomicU64) {
    try_machine(4, ap_main, || {
        wait_until("all CPUs have counted", || ready.load(Ordering::Acquire) == 3);
        assert_eq!(cpu::current(), CpuId::BOOT);
        for cpu in cpu::present() {
            // SAFETY: the CPUs are done with their copies, which READY tells.
            let (number, last) = unsafe { (*NUMBER.ptr_on(cpu), (*STRUCT.ptr_on(cpu))[4]) };
            assert_eq!((number, last), (cpu.index() * 1000, 5 + cpu.index() as u64));
        }
        assert_eq!(NUMBER.this_ptr(), NUMBER.ptr_on(CpuId::BOOT));
    })
    .unwrap();
}

#[test]
fn a_machine_does_not_see_what_threads_outside_it_did_to_the_template() {
    OUTSIDE.add(35);
    assert_eq!(OUTSIDE.get(), 42);
    machine(2, || assert_eq!(OUTSIDE.get(), 7));
    assert_eq!(OUTSIDE.get(), 42);
}

#[test]
fn each_cpu_has_a_dynamic_part_of_its_own() {
    machine(3, || {
        let place = percpu::DynPlace::new(percpu::dynamic_start());
        assert_eq!(place.offset(), percpu::dynamic_start());
        let places: Vec<*mut u8> = cpu::present().iter().map(|cpu| place.ptr_on(cpu)).collect();
        for (index, place) in places.iter().enumerate() {
            // SAFETY: the dynamic part of an area, all of it unused.
            unsafe {
                place.write_bytes(index as u8 + 1, percpu::DYNAMIC_SIZE);
            }
        }
        assert_eq!(place.this_ptr(), places[0]);
        // SAFETY: as above.
        assert_eq!(places.iter().map(|p| unsafe { **p }).collect::<Vec<_>>(), [1, 2, 3]);
        // SAFETY: the same place, as a flag, a counter and a pointer behind it.
        unsafe {
            place.clear::<4>();
            assert!(!place.test_and_set::<4>() && place.test_and_set::<4>());
            place.inc::<8>();
            place.inc_locked::<8>();
            place.add::<8>(40);
            assert_eq!(place.load::<8>().addr(), 0x0101_0101_0101_0101 + 42);
            place.clear::<4>();
            assert!(!place.test_and_set::<4>());
            assert_eq!(places[0].cast::<[u32; 4]>().read(), [0x0101_0101, 1, 0x0101_0101 + 42, 0x0101_0101]);
            assert_eq!(places[1].cast::<[u32; 4]>().read(), [0x0202_0202; 4], "another CPU's stays as it was");
        }
    });
}

#[test]
fn a_variable_of_the_static_part_has_a_place_as_well() {
    machine(2, || {
        let place = percpu::DynPlace::from_ptr(percpu::DynPlace::of(&OUTSIDE).as_ptr());
        // SAFETY: a u64 lies there.
        unsafe { place.inc::<0>() };
        assert_eq!(OUTSIDE.get(), 8);
        assert_eq!(place.ptr_on(CpuId::new(1)).cast(), OUTSIDE.ptr_on(CpuId::new(1)));
    });
}

#[test]
fn counting_is_exact_while_nmis_count_in_the_same_variable() {
    static STORMING: AtomicBool = AtomicBool::new(true);
    fn storm(_: CpuId) {
        // Acquire: pairs with the store below.
        while STORMING.load(Ordering::Acquire) {
            ipi::send_nmi(CpuId::BOOT);
            core::hint::spin_loop();
        }
    }
    STORMING.store(true, Ordering::Relaxed);
    try_machine(2, storm, || {
        let mut turns = 0u64;
        on_nmi(|_| {
            STORM.inc();
            STORM.add(2);
            NMIS_THAT_COUNTED.inc();
        });
        while NMIS_THAT_COUNTED.get() < 3_000 {
            for _ in 0..64 {
                STORM.inc();
                STORM.sub(2);
                turns += 1;
            }
        }
        STORMING.store(false, Ordering::Release);
        // One more may be on its way; it counts as a whole, before or after both variables are read.
        crate::clock::udelay(20_000);
        let (sum, nmis) = (STORM.get().wrapping_add(turns), NMIS_THAT_COUNTED.get());
        assert_eq!(sum, 3 * nmis, "turns: {turns}");
    })
    .unwrap();
}

/// Counts and returns: one instruction and `ret` in a release build, more around it in others.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn grange_arch_probe_inc() {
    LONG.inc();
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn grange_arch_probe_unlock(f: extern "C" fn()) {
    if LONG.dec_and_is_zero() {
        f();
    }
}

#[test]
fn counting_is_one_gs_relative_instruction() {
    const INC_QWORD_GS_RIP: [u8; 4] = [0x65, 0x48, 0xff, 0x05];
    const DEC_QWORD_GS_RIP: [u8; 4] = [0x65, 0x48, 0xff, 0x0d];
    fn code<'a>(f: *const ()) -> &'a [u8] {
        // SAFETY: a function of this program, with more code behind it: readable.
        unsafe { core::slice::from_raw_parts(f.cast(), 32) }
    }
    let inc = code(grange_arch_probe_inc as *const ());
    let at = inc.windows(4).position(|w| w == INC_QWORD_GS_RIP);
    assert!(at.is_some(), "{inc:02x?}");
    let unlock = code(grange_arch_probe_unlock as *const ());
    assert!(unlock.windows(4).any(|w| w == DEC_QWORD_GS_RIP), "{unlock:02x?}");
    if !cfg!(debug_assertions) {
        assert_eq!((at, inc[8]), (Some(0), 0xc3), "inc and ret, nothing else: {inc:02x?}");
    }
}
