//! What the types of the API promise not to let anybody do: each file in `ui` is a promise, with the compiler's answer beside it.
//!
//! After a change of the API or of the toolchain, `TRYBUILD=overwrite cargo test -p grange-kfree-rcu --test ui` writes the
//! answers anew; read them before they are committed.

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
