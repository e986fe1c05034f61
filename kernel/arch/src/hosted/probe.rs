//! Reads that may fail: the host copies, and says so when it cannot.
//!
//! Context: any, NMI included: one system call.

/// The eight bytes at `address`, if all of them can be read. The address need not be aligned.
pub fn read(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    let local = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: size_of::<u64>() };
    let remote =
        libc::iovec { iov_base: core::ptr::without_provenance_mut(address as usize), iov_len: size_of::<u64>() };
    // SAFETY: writes eight bytes to `value` only; what cannot be read is an error, not a fault.
    let copied = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    (copied == size_of::<u64>() as isize).then_some(value)
}
