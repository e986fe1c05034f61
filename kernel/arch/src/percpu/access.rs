//! The [`per_cpu!`](crate::per_cpu) macro and the instructions it generates.
//!
//! `asm!` can name a symbol only where the symbol is written out, so the accessors cannot be generic functions over an
//! address: each variable gets a type with its name (types and statics have separate name spaces), and the macro
//! implements the accessors of all four widths for that type. They are `inline(always)`, so what is not used is not
//! compiled. Operations that write have the default memory clobber and therefore are compiler barriers, which
//! read-side critical sections rely on; loads are only kept in order with other `asm!`.
//!
//! The operand is `gs:[rip + symbol]`: position-independent on the host, and one byte shorter than an absolute address in
//! the kernel.

/// Declares per-CPU variables: `per_cpu! { /// docs  pub static NAME: Type = const_initial_value; }`.
///
/// The initial value is a constant expression; the type need not be `Sync`. `NAME` is a
/// [`PerCpu`](crate::percpu::PerCpu), and also the name of a type that stands for the variable in
/// `PerCpu`'s parameter.
#[macro_export]
macro_rules! per_cpu {
    ($($(#[$attr:meta])* $vis:vis static $name:ident : $ty:ty = $init:expr ;)+) => {$(
        #[doc(hidden)]
        #[allow(non_camel_case_types, unreachable_pub, clippy::upper_case_acronyms)]
        $vis enum $name {}

        // SAFETY: the accessors that the macro generates name the static `$name`, declared just below, and no other.
        unsafe impl $crate::percpu::Symbol for $name {
            type Value = $ty;
        }
        $crate::__per_cpu_access!($name);

        // PERCPU-3
        const _: () = assert!(
            ::core::mem::align_of::<$ty>() <= $crate::PAGE_SIZE,
            "a per-CPU variable cannot be aligned to more than a page",
        );

        $(#[$attr])*
        #[cfg_attr(not(miri), unsafe(link_section = "grange_percpu"))]
        $vis static $name: $crate::percpu::PerCpu<$name> = {
            #[allow(clippy::declare_interior_mutable_const)]
            const INIT: $ty = $init;
            // SAFETY: this is the static that the type `$name` stands for, in the section of per-CPU variables.
            unsafe { $crate::percpu::PerCpu::new(INIT) }
        };
    )+};
}

/// The accessors of one symbol, all widths.
#[cfg(not(miri))]
#[doc(hidden)]
#[macro_export]
macro_rules! __per_cpu_access {
    ($name:ident) => {
        $crate::__per_cpu_access!($name, u8, "byte", "{v}", reg_byte, "al");
        $crate::__per_cpu_access!($name, u16, "word", "{v:x}", reg, "ax");
        $crate::__per_cpu_access!($name, u32, "dword", "{v:e}", reg, "eax");
        $crate::__per_cpu_access!($name, u64, "qword", "{v}", reg, "rax");
    };
    ($name:ident, $w:ty, $ptr:literal, $v:literal, $reg:ident, $acc:tt) => {
        // SAFETY: every instruction accesses the symbol `$name` relative to gs and nothing else; the callers, methods of
        // `PerCpu`, pick the width of the variable.
        unsafe impl $crate::percpu::Access<$w> for $name {
            #[inline(always)]
            unsafe fn load() -> $w {
                let v: $w;
                // SAFETY: reads this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("mov ", $v, ", ", $ptr, " ptr gs:[rip + {s}]"), s = sym $name,
                        v = lateout($reg) v, options(nostack, preserves_flags, readonly));
                }
                v
            }
            #[inline(always)]
            unsafe fn store(v: $w) {
                // SAFETY: writes this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("mov ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = in($reg) v, options(nostack, preserves_flags));
                }
            }
            #[inline(always)]
            unsafe fn add(v: $w) {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("add ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = in($reg) v, options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn sub(v: $w) {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("sub ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = in($reg) v, options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn sub_is_zero(v: $w) -> bool {
                // SAFETY: updates this CPU's copy of `$name`; the label is left by the jump with nothing on the stack.
                unsafe {
                    ::core::arch::asm!(concat!("sub ", $ptr, " ptr gs:[rip + {s}], ", $v), "je {zero}", s = sym $name,
                        v = in($reg) v, zero = label { return true }, options(nostack));
                }
                false
            }
            #[inline(always)]
            unsafe fn is(v: $w) -> bool {
                // SAFETY: reads this CPU's copy of `$name`; the label is left by the jump with nothing on the stack.
                unsafe {
                    ::core::arch::asm!(concat!("cmp ", $ptr, " ptr gs:[rip + {s}], ", $v), "jne {other}", s = sym $name,
                        v = in($reg) v, other = label { return false }, options(nostack, readonly));
                }
                true
            }
            #[inline(always)]
            unsafe fn inc() {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("inc ", $ptr, " ptr gs:[rip + {s}]"), s = sym $name, options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn dec() {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("dec ", $ptr, " ptr gs:[rip + {s}]"), s = sym $name, options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn dec_is_zero() -> bool {
                // SAFETY: as in `sub_is_zero`.
                unsafe {
                    ::core::arch::asm!(concat!("dec ", $ptr, " ptr gs:[rip + {s}]"), "je {zero}", s = sym $name,
                        zero = label { return true }, options(nostack));
                }
                false
            }
            #[inline(always)]
            unsafe fn add_const<const N: i32>() {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("add ", $ptr, " ptr gs:[rip + {s}], {n}"), s = sym $name, n = const N,
                        options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn or(v: $w) {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("or ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = in($reg) v, options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn and(v: $w) {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("and ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = in($reg) v, options(nostack));
                }
            }
            #[inline(always)]
            unsafe fn xchg(mut v: $w) -> $w {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("xchg ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = inout($reg) v, options(nostack, preserves_flags));
                }
                v
            }
            #[inline(always)]
            unsafe fn cmpxchg(mut old: $w, new: $w) -> $w {
                // SAFETY: updates this CPU's copy of `$name`.
                unsafe {
                    ::core::arch::asm!(concat!("cmpxchg ", $ptr, " ptr gs:[rip + {s}], ", $v), s = sym $name,
                        v = in($reg) new, inout($acc) old, options(nostack));
                }
                old
            }
        }
    };
}

/// The accessors of one symbol under Miri: relaxed atomics on the template, which is the only copy.
#[cfg(miri)]
#[doc(hidden)]
#[macro_export]
macro_rules! __per_cpu_access {
    ($name:ident) => {
        $crate::__per_cpu_access!($name, u8, AtomicU8);
        $crate::__per_cpu_access!($name, u16, AtomicU16);
        $crate::__per_cpu_access!($name, u32, AtomicU32);
        $crate::__per_cpu_access!($name, u64, AtomicU64);
    };
    ($name:ident, $w:ty, $atomic:ident) => {
        // SAFETY: all accesses go to the symbol `$name`, whose width the callers, methods of `PerCpu`, know to be this one.
        unsafe impl $crate::percpu::Access<$w> for $name {
            unsafe fn load() -> $w {
                // SAFETY: the template is a live static of this width.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.load($crate::percpu::miri::Relaxed)
            }
            unsafe fn store(v: $w) {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.store(v, $crate::percpu::miri::Relaxed)
            }
            unsafe fn add(v: $w) {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.fetch_add(v, $crate::percpu::miri::Relaxed);
            }
            unsafe fn sub(v: $w) {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.fetch_sub(v, $crate::percpu::miri::Relaxed);
            }
            unsafe fn sub_is_zero(v: $w) -> bool {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.fetch_sub(v, $crate::percpu::miri::Relaxed) == v
            }
            unsafe fn is(v: $w) -> bool {
                // SAFETY: as the callee.
                unsafe { <Self as $crate::percpu::Access<$w>>::load() == v }
            }
            unsafe fn inc() {
                // SAFETY: as the callee.
                unsafe { <Self as $crate::percpu::Access<$w>>::add(1) }
            }
            unsafe fn dec() {
                // SAFETY: as the callee.
                unsafe { <Self as $crate::percpu::Access<$w>>::sub(1) }
            }
            unsafe fn dec_is_zero() -> bool {
                // SAFETY: as the callee.
                unsafe { <Self as $crate::percpu::Access<$w>>::sub_is_zero(1) }
            }
            unsafe fn add_const<const N: i32>() {
                // SAFETY: as the callee.
                unsafe { <Self as $crate::percpu::Access<$w>>::add(N as $w) }
            }
            unsafe fn or(v: $w) {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.fetch_or(v, $crate::percpu::miri::Relaxed);
            }
            unsafe fn and(v: $w) {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.fetch_and(v, $crate::percpu::miri::Relaxed);
            }
            unsafe fn xchg(v: $w) -> $w {
                // SAFETY: as in `load`.
                unsafe { $crate::percpu::miri::$atomic(&$name) }.swap(v, $crate::percpu::miri::Relaxed)
            }
            unsafe fn cmpxchg(old: $w, new: $w) -> $w {
                // SAFETY: as in `load`.
                let word = unsafe { $crate::percpu::miri::$atomic(&$name) };
                match word.compare_exchange(old, new, $crate::percpu::miri::Relaxed, $crate::percpu::miri::Relaxed) {
                    Ok(found) | Err(found) => found,
                }
            }
        }
    };
}
