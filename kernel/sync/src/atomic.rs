//! The facade over atomics: the same source runs on the machine, under Miri and under loom.
//!
//! Modules that are model-checked take their atomics, fences and the pause of a spinning loop
//! from here and from nowhere else. loom's types cannot be made in a `const`, so constructors are
//! written with [`const_unless_loom!`], arrays with [`array_of!`] and statics with [`static_or_lazy!`].
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

/// Declares statics; under loom each execution of a model has its own, made when it is first used.
///
/// Whoever makes it happens before whoever uses it, as loom sees it: a model uses each once before it spawns threads.
#[macro_export]
macro_rules! static_or_lazy {
    ($($(#[$meta:meta])* $vis:vis static $name:ident: $ty:ty = $init:expr;)+) => {$(
        #[cfg(not(loom))]
        $(#[$meta])*
        $vis static $name: $ty = $init;
        #[cfg(loom)]
        $(#[$meta])*
        $vis static $name: $crate::atomic::PerExecution<$ty> = $crate::atomic::PerExecution::new({
            static LAZY: $crate::private::loom::lazy_static::Lazy<$ty> =
                $crate::private::loom::lazy_static::Lazy { init: || $init, _p: ::core::marker::PhantomData };
            &LAZY
        });
    )+};
}

/// What [`static_or_lazy!`] declares under loom.
#[cfg(loom)]
pub struct PerExecution<T: 'static>(&'static loom::lazy_static::Lazy<T>);

#[cfg(loom)]
impl<T> PerExecution<T> {
    /// The static behind it.
    #[doc(hidden)]
    pub const fn new(lazy: &'static loom::lazy_static::Lazy<T>) -> Self {
        Self(lazy)
    }
}

#[cfg(loom)]
impl<T> core::ops::Deref for PerExecution<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.get()
    }
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
