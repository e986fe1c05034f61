//! The facade over atomics: the same source runs on the machine, under Miri and under loom.
//!
//! Modules that are model-checked take their atomics, fences and the pause of a spinning loop
//! from here and from nowhere else. loom's types cannot be made in a `const`, so constructors are
//! written with [`const_unless_loom!`] and arrays with [`array_of!`]; a loom model builds what it
//! checks explicitly instead of using statics.
//!
//! loom treats `SeqCst` accesses as `AcqRel`: where a full barrier is meant, write `fence(SeqCst)`.

#[cfg(not(loom))]
pub use core::sync::atomic::*;
#[cfg(loom)]
pub use loom::sync::atomic::*;

/// Tells the CPU (or the model checker) that this loop waits for somebody else.
///
/// Context: any.
#[inline(always)]
pub fn pause() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// [`explore::point`](crate::explore::point) for modules that are model-checked; loom explores by itself.
///
/// Context: any.
#[inline(always)]
pub fn point() {
    #[cfg(not(loom))]
    crate::explore::point();
}

/// Writes a function that is `const`, except under loom.
#[macro_export]
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$meta])*
        #[cfg(not(loom))]
        $vis const fn $name($($arg: $ty),*) -> $ret $body
        $(#[$meta])*
        #[cfg(loom)]
        $vis fn $name($($arg: $ty),*) -> $ret $body
    };
}

/// `[value; N]` for a value that is not `Copy`, also under loom.
#[macro_export]
macro_rules! array_of {
    ($value:expr; $n:expr) => {{
        #[cfg(not(loom))]
        let array = [const { $value }; $n];
        #[cfg(loom)]
        let array = ::core::array::from_fn(|_| $value);
        array
    }};
}
