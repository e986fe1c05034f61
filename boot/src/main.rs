#![no_std]
#![no_main]
//! (to be written)
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
