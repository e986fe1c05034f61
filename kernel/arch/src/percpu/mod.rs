//! Per-CPU variables: one copy for each CPU, reached with one instruction.
//!
//! [`per_cpu!`](crate::per_cpu) puts the initial value of a variable into the link section `grange_percpu`, the
//! *template*. Each CPU owns an *area*: a copy of the template followed by [`DYNAMIC_SIZE`] bytes that a later storey
//! hands out. The GS base of a CPU is `area - template start`, so that `gs:[rip + SYMBOL]` reaches the CPU's own copy.
//! One instruction cannot be cut in two by an interrupt, an NMI or a migration to another CPU, so a counter that only
//! its own CPU writes needs no locked instruction. A CPU that has not loaded its base yet (GS base 0) works on the
//! template itself: the early boot CPU does.
//!
//! What optimised code looks like (`objdump -d` of the hosted build; the bare one differs in addresses alone):
//!
//! ```text
//! COUNT.inc()                    65 48 ff 05 rel32     inc  QWORD PTR gs:[rip+COUNT]
//! COUNT.get()                    65 48 8b 05 rel32     mov  rax,QWORD PTR gs:[rip+COUNT]
//! if COUNT.dec_and_is_zero() {}  65 48 ff 0d rel32     dec  QWORD PTR gs:[rip+COUNT]
//!                                74 rel8               je   ...
//! ```
//!
//! Invariants:
//!
//! - `PERCPU-1` The area of a CPU is written by that CPU alone, or is of a type that may be shared; whoever uses
//!   [`PerCpu::ptr_on`] answers for it.
//! - `PERCPU-2` `THIS_CPU_OFF` in an area is `area - template start`, as is `OFFSETS[cpu]`; both are written by
//!   [`init_area`] before the CPU loads its base, and are constant afterwards.
//! - `PERCPU-3` A variable is aligned to at most [`PAGE_SIZE`], the alignment of an area
//!   (checked at compile time by the macro).
//!
//! Under Miri neither `asm!` nor the section's bounds exist: there is one CPU, it works on the template, and the
//! accessors are relaxed atomics of the same width.
//!
//! Linux: `include/linux/percpu-defs.h`, `arch/x86/include/asm/percpu.h`, `mm/percpu.c`. Unlike there, a variable is a
//! type of its own, so that its accessors can name the symbol.

mod access;
mod dynamic;
mod word;

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::PAGE_SIZE;
use crate::cpu::{CpuId, MAX_CPUS};

pub use dynamic::DynPlace;
pub use word::{Int, Word};

/// Bytes of an area. A power of two, so that a page allocator that deals in those wastes nothing.
const AREA_SIZE: usize = 256 * 1024;

/// Most bytes that the static part may have.
const MAX_STATIC: usize = 32 * 1024;

/// Bytes of the dynamic part that follows the static one in each area.
pub const DYNAMIC_SIZE: usize = AREA_SIZE - MAX_STATIC;

/// `area - template start` of each CPU, wrapping; 0 until [`init_area`].
///
/// Written once per CPU by [`init_area`]; read by everybody.
static OFFSETS: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

crate::per_cpu! {
    /// `area - template start` of this CPU: what [`PerCpu::this_ptr`] adds to the address of the symbol.
    pub(crate) static THIS_CPU_OFF: usize = 0;

    /// The number of this CPU. 0 in the template, which is right for the boot CPU.
    pub(crate) static CPU_NUMBER: u16 = 0;
}

/// A per-CPU variable declared by [`per_cpu!`](crate::per_cpu): the template copy, and the way to all the others.
///
/// `S` is the type that stands for this one symbol.
#[repr(transparent)]
pub struct PerCpu<S: Symbol> {
    template: UnsafeCell<S::Value>,
}

// SAFETY: a `PerCpu` gives out raw pointers and single-instruction accesses to the copy of the running CPU; each copy is
// only touched by its own CPU unless the user of `ptr_on` argues otherwise (PERCPU-1), so the value itself is not shared.
unsafe impl<S: Symbol> Sync for PerCpu<S> {}

/// Ties a type to the per-CPU symbol it stands for. Implemented by [`per_cpu!`](crate::per_cpu) only.
///
/// # Safety
///
/// Every method of the [`Access`] impls reaches the symbol whose [`PerCpu`] has `Self` as parameter, and nothing else.
#[doc(hidden)]
pub unsafe trait Symbol: Access<u8> + Access<u16> + Access<u32> + Access<u64> + Sized + 'static {
    /// The type of the variable.
    type Value: 'static;
}

/// Single-instruction, gs-relative accesses of width `W` to one symbol. Implemented by [`per_cpu!`](crate::per_cpu).
///
/// # Safety
///
/// The symbol holds at least a `W`, and the bit pattern written is valid for it: [`PerCpu`] sees to both by asking for
/// a [`Word`] whose `Bits` are `W`.
#[doc(hidden)]
#[allow(missing_docs, clippy::missing_safety_doc)]
pub unsafe trait Access<W> {
    unsafe fn load() -> W;
    unsafe fn store(value: W);
    unsafe fn add(value: W);
    unsafe fn sub(value: W);
    unsafe fn sub_is_zero(value: W) -> bool;
    unsafe fn is(value: W) -> bool;
    unsafe fn inc();
    unsafe fn dec();
    unsafe fn dec_is_zero() -> bool;
    unsafe fn add_const<const N: i32>();
    unsafe fn or(value: W);
    unsafe fn and(value: W);
    unsafe fn xchg(value: W) -> W;
    unsafe fn cmpxchg(old: W, new: W) -> W;
}

/// The integer that the variable `S` is moved as.
type Bits<S> = <<S as Symbol>::Value as Word>::Bits;

impl<S: Symbol> PerCpu<S> {
    /// The template copy of a variable. Only [`per_cpu!`](crate::per_cpu) calls this.
    ///
    /// # Safety
    ///
    /// The result is the static that `S` stands for, in section `grange_percpu`.
    #[doc(hidden)]
    pub const unsafe fn new(init: S::Value) -> Self {
        Self { template: UnsafeCell::new(init) }
    }

    /// The copy of this CPU: one gs-relative load and an addition.
    ///
    /// Context: any. The caller is pinned (preemption or interrupts off), or can do with the copy of a CPU it has just
    /// been moved away from.
    #[inline(always)]
    pub fn this_ptr(&self) -> *mut S::Value {
        this_cpu_ptr(self.template.get())
    }

    /// The copy of `cpu`. Dereferencing it is up to the caller (PERCPU-1).
    ///
    /// Context: any. For a CPU without an area this is the template.
    #[inline]
    pub fn ptr_on(&self, cpu: CpuId) -> *mut S::Value {
        // Relaxed: the offset is constant once the CPU is present (PERCPU-2).
        self.template.get().wrapping_byte_add(OFFSETS[cpu.index()].load(Ordering::Relaxed))
    }
}

/// Single-instruction accesses to the copy of the running CPU. Each is atomic against interrupts, NMIs and migration
/// on its own CPU, and not against other CPUs. None but [`get`](PerCpu::get) and [`is`](PerCpu::is) lets the compiler move memory accesses
/// across it.
///
/// Context: any. Wait-free.
impl<S: Symbol + Access<Bits<S>>> PerCpu<S>
where
    S::Value: Word,
{
    /// The value.
    #[inline(always)]
    pub fn get(&self) -> S::Value {
        // SAFETY: `S` stands for this symbol and `Bits` has its size.
        S::Value::from_bits(unsafe { <S as Access<Bits<S>>>::load() })
    }

    /// Whether the value is `value`: one comparison with memory.
    #[inline(always)]
    pub fn is(&self, value: S::Value) -> bool {
        // SAFETY: as in `get`.
        unsafe { <S as Access<Bits<S>>>::is(value.to_bits()) }
    }

    /// Stores `value`.
    #[inline(always)]
    pub fn set(&self, value: S::Value) {
        // SAFETY: `S` stands for this symbol, and the bits are those of a value of its type.
        unsafe { <S as Access<Bits<S>>>::store(value.to_bits()) }
    }

    /// Stores `value` and returns what was there. (`xchg`, which the processor locks: dearer than the others.)
    #[inline(always)]
    pub fn xchg(&self, value: S::Value) -> S::Value {
        // SAFETY: as in `set`.
        S::Value::from_bits(unsafe { <S as Access<Bits<S>>>::xchg(value.to_bits()) })
    }

    /// Stores `new` if the value is `old`; `Ok(old)` if so, else `Err` with what is there. No lock prefix.
    ///
    /// # Errors
    ///
    /// The value that was found instead of `old`.
    #[inline(always)]
    pub fn cmpxchg(&self, old: S::Value, new: S::Value) -> Result<S::Value, S::Value> {
        // SAFETY: as in `set`.
        let found = unsafe { <S as Access<Bits<S>>>::cmpxchg(old.to_bits(), new.to_bits()) };
        if found == old.to_bits() { Ok(old) } else { Err(S::Value::from_bits(found)) }
    }
}

/// Single-instruction arithmetic on the copy of the running CPU. Wraps.
impl<S: Symbol + Access<Bits<S>>> PerCpu<S>
where
    S::Value: Int,
{
    /// Adds `value`.
    #[inline(always)]
    pub fn add(&self, value: S::Value) {
        // SAFETY: `S` stands for this symbol, an integer of the size of `Bits`.
        unsafe { <S as Access<Bits<S>>>::add(value.to_bits()) }
    }

    /// Adds the constant `N`, which becomes an immediate of the instruction.
    #[inline(always)]
    pub fn add_const<const N: i32>(&self) {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::add_const::<N>() }
    }

    /// Subtracts `value`.
    #[inline(always)]
    pub fn sub(&self, value: S::Value) {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::sub(value.to_bits()) }
    }

    /// Subtracts `value`; whether the result is zero (from the flags of the same instruction).
    #[inline(always)]
    pub fn sub_and_is_zero(&self, value: S::Value) -> bool {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::sub_is_zero(value.to_bits()) }
    }

    /// Adds 1.
    #[inline(always)]
    pub fn inc(&self) {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::inc() }
    }

    /// Subtracts 1.
    #[inline(always)]
    pub fn dec(&self) {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::dec() }
    }

    /// Subtracts 1; whether the result is zero (from the flags of the same instruction).
    #[inline(always)]
    pub fn dec_and_is_zero(&self) -> bool {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::dec_is_zero() }
    }

    /// Sets the bits of `mask`.
    #[inline(always)]
    pub fn or(&self, mask: S::Value) {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::or(mask.to_bits()) }
    }

    /// Keeps the bits of `mask` only.
    #[inline(always)]
    pub fn and(&self, mask: S::Value) {
        // SAFETY: as in `add`.
        unsafe { <S as Access<Bits<S>>>::and(mask.to_bits()) }
    }
}

/// Address of this CPU's copy of what lies at `template` in the template.
#[inline(always)]
fn this_cpu_ptr<T>(template: *mut T) -> *mut T {
    template.wrapping_byte_add(THIS_CPU_OFF.get())
}

/// First byte of the template and its length. Under Miri, which has no linker, there is no template to copy.
pub(crate) fn template() -> (*const u8, usize) {
    #[cfg(miri)]
    return (core::ptr::null(), 0);
    #[cfg(not(miri))]
    {
        unsafe extern "C" {
            static __start_grange_percpu: u8;
            static __stop_grange_percpu: u8;
        }
        let (start, stop) = (&raw const __start_grange_percpu, &raw const __stop_grange_percpu);
        (start, stop.addr() - start.addr())
    }
}

/// Size and alignment of the static part of an area. The dynamic part begins right behind it.
pub fn area_layout() -> Layout {
    // 64: the dynamic part begins on a cache line of its own.
    let size = template().1.next_multiple_of(64);
    assert!(size <= MAX_STATIC, "static per-CPU variables take {size} bytes of {MAX_STATIC}: raise MAX_STATIC");
    Layout::from_size_align(size, PAGE_SIZE).expect("the per-CPU template is far smaller than the address space")
}

/// Bytes of one whole area, static and dynamic part, in whole pages: a power of two.
pub fn area_size() -> usize {
    AREA_SIZE
}

/// Makes `area` the per-CPU area of `cpu`: copies the template, and records where it lies. The dynamic part is left as it
/// is; whoever hands out a piece of it fills that in, on all CPUs.
///
/// Context: boot, before `cpu` runs on it. In the kernel, values that the early boot CPU wrote into the template are copied
/// along, so all areas are best made before anything but arch runs. A hosted machine gets the values from before `main`.
///
/// # Safety
///
/// `area` is aligned to a page, points to [`area_size`] writable bytes that nobody else uses, for as long as the
/// machine runs; `cpu` is not running on an older area.
pub unsafe fn init_area(cpu: CpuId, area: *mut u8) {
    let (start, len) = template();
    let offset = area.addr().wrapping_sub(start.addr());
    #[cfg(target_os = "none")]
    let contents = start;
    #[cfg(not(target_os = "none"))]
    let contents = crate::hosted::pristine_template().unwrap_or(start);
    debug_assert!(len <= MAX_STATIC);
    // SAFETY: the caller hands over `area_size()` bytes; the template is `len` bytes, fewer than that, elsewhere.
    unsafe { core::ptr::copy_nonoverlapping(contents, area, len) };
    // Relaxed: readers learn of the CPU through the present mask or run on it, after this (PERCPU-2).
    OFFSETS[cpu.index()].store(offset, Ordering::Relaxed);
    // SAFETY: both variables are part of the area just made, and `cpu` does not run on it yet.
    unsafe {
        THIS_CPU_OFF.ptr_on(cpu).write(offset);
        CPU_NUMBER.ptr_on(cpu).write(cpu.index() as u16);
    }
}

/// Loads the GS base of `cpu` on the CPU that calls: from here on this CPU *is* `cpu`.
///
/// Context: boot of that CPU, interrupts off.
///
/// # Safety
///
/// [`init_area`] was called for `cpu`, no other CPU runs as `cpu`, and no pointer into the copy used so far is kept.
pub unsafe fn load(cpu: CpuId) {
    // SAFETY: the caller's promise is the one that is asked for here.
    unsafe { crate::imp::set_gs_base(OFFSETS[cpu.index()].load(Ordering::Relaxed)) }
}

/// Forgets every area. Only a hosted machine that ends does this.
#[cfg(not(target_os = "none"))]
pub(crate) fn forget_areas() {
    for offset in &OFFSETS {
        offset.store(0, Ordering::Relaxed);
    }
}

/// First byte behind the static part, counted from the base of an area: the dynamic part is
/// `dynamic_start()..dynamic_start() + DYNAMIC_SIZE`.
pub fn dynamic_start() -> usize {
    area_layout().size()
}

/// What the accessors under Miri are made of: each variable of 1, 2, 4 or 8 bytes seen as an atomic.
#[cfg(miri)]
#[doc(hidden)]
#[allow(non_snake_case, missing_docs)]
pub mod miri {
    use super::{PerCpu, Symbol};
    pub use core::sync::atomic::Ordering::Relaxed;

    macro_rules! views {
        ($($atomic:ident)+) => {$(
            /// # Safety
            ///
            /// The variable has the width of the atomic.
            pub unsafe fn $atomic<S: Symbol>(var: &'static PerCpu<S>) -> &'static core::sync::atomic::$atomic {
                // SAFETY: the static lives for ever, has this width, and its accessors all come through here.
                unsafe { &*var.template.get().cast() }
            }
        )+};
    }
    views!(AtomicU8 AtomicU16 AtomicU32 AtomicU64);
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::per_cpu! {
        static SMALL: u8 = 255;
        static NUMBER: i32 = -1;
        static WHERE: *const u8 = core::ptr::null();
        static PLAIN: [u32; 3] = [1, 2, 3];
    }

    // Without a machine, and under Miri, the template is the copy of the one CPU. These variables have no other user.
    #[test]
    fn outside_a_machine_the_template_is_the_copy() {
        SMALL.inc();
        assert_eq!(SMALL.get(), 0, "wraps");
        assert!(!SMALL.sub_and_is_zero(1) && SMALL.sub_and_is_zero(255));
        NUMBER.add(-4);
        NUMBER.add_const::<3>();
        assert!(NUMBER.is(-2) && !NUMBER.is(2));
        assert_eq!((NUMBER.get(), NUMBER.xchg(7)), (-2, -2));
        assert_eq!((NUMBER.cmpxchg(6, 1), NUMBER.cmpxchg(7, 1), NUMBER.get()), (Err(7), Ok(7), 1));
        assert!(NUMBER.dec_and_is_zero());
        NUMBER.or(0b110);
        NUMBER.and(0b011);
        assert_eq!(NUMBER.get(), 2);
        let byte = 9u8;
        WHERE.set(&raw const byte);
        // SAFETY: the pointer that was just stored.
        assert_eq!(unsafe { *WHERE.get() }, 9);
        // SAFETY: nobody else uses the variable.
        assert_eq!(unsafe { *PLAIN.this_ptr() }, [1, 2, 3]);
        assert_eq!(PLAIN.this_ptr(), PLAIN.ptr_on(CpuId::new(MAX_CPUS - 1)), "a CPU without an area");
    }
}
