//! Hands the linker script to the link of the bare-metal kernel, and only to that: `cargo check` and
//! `clippy` on the host must not see it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets the manifest folder");
        println!("cargo:rustc-link-arg-bins=-T{dir}/link.ld");
        println!("cargo:rustc-link-arg-bins=--no-pie");
        // Registries (tests, parameters, shell commands) are reached through their section's bounds
        // only; by default the linker may drop such a section.
        println!("cargo:rustc-link-arg-bins=-znostart-stop-gc");
        // A build id lets a log be matched with the file that printed it.
        println!("cargo:rustc-link-arg-bins=--build-id=sha1");
    }
}
