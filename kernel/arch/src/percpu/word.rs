//! What one instruction can move: integers, booleans and thin pointers, seen as unsigned integers of the same size.

/// A value of 1, 2, 4 or 8 bytes that one instruction can move.
///
/// # Safety
///
/// `Bits` has the size of `Self`, and `from_bits` undoes `to_bits`.
pub unsafe trait Word: Copy + 'static {
    /// The unsigned integer of the same size.
    type Bits: Copy + Eq;
    /// The bits of the value.
    fn to_bits(self) -> Self::Bits;
    /// The value with these bits, which came from [`to_bits`](Self::to_bits).
    fn from_bits(bits: Self::Bits) -> Self;
}

/// A [`Word`] that is an integer.
pub trait Int: Word {}

macro_rules! int_words {
    ($($int:ty => $bits:ty),+ $(,)?) => {$(
        // SAFETY: same size, and `as` between integers of one size keeps the bits.
        unsafe impl Word for $int {
            type Bits = $bits;
            #[inline(always)]
            fn to_bits(self) -> $bits { self as $bits }
            #[inline(always)]
            fn from_bits(bits: $bits) -> Self { bits as $int }
        }
        impl Int for $int {}
    )+};
}
int_words!(u8 => u8, i8 => u8, u16 => u16, i16 => u16, u32 => u32, i32 => u32, u64 => u64, i64 => u64,
    usize => u64, isize => u64);

// SAFETY: a bool is one byte, 0 or 1; only `to_bits` makes the bits.
unsafe impl Word for bool {
    type Bits = u8;
    #[inline(always)]
    fn to_bits(self) -> u8 {
        self as u8
    }
    #[inline(always)]
    fn from_bits(bits: u8) -> Self {
        bits != 0
    }
}

// SAFETY: a thin pointer is 8 bytes on x86_64, and its address is exposed by `to_bits`.
unsafe impl<U: 'static> Word for *mut U {
    type Bits = u64;
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.expose_provenance() as u64
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        core::ptr::with_exposed_provenance_mut(bits as usize)
    }
}

// SAFETY: as for `*mut U`.
unsafe impl<U: 'static> Word for *const U {
    type Bits = u64;
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.expose_provenance() as u64
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        core::ptr::with_exposed_provenance(bits as usize)
    }
}
