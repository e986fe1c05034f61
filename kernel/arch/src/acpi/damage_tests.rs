//! Damage at random: whatever the bytes, reading them ends and does not panic.

extern crate std;
use super::{machine::Machine, madt, slit, srat};
use std::vec::Vec;

/// Tables to damage. Small in checking builds of the interpreter, which is slow.
const TRIES: u64 = if cfg!(miri) { 50 } else { 20_000 };

/// A small generator (xorshift), so that a failure can be repeated.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Changes a few bytes, or cuts the end off.
    fn damage(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        if self.below(8) == 0 {
            bytes.truncate(self.below(whole.len() + 1));
        }
        for _ in 0..self.below(6) {
            if !bytes.is_empty() {
                let at = self.below(bytes.len());
                bytes[at] = [0, 1, 2, 0x7f, 0xff, self.next() as u8][self.below(6)];
            }
        }
        bytes
    }
}

#[test]
fn no_damage_makes_a_reader_hang_or_panic() {
    let whole_madt = madt::build::madt(&[madt::build::cpu(0, 1), madt::build::cpu(1, 1), madt::build::x2cpu(300, 1)]);
    let whole_srat = srat::build::srat(
        3,
        &[
            srat::build::cpu(0, 0, 1),
            srat::build::x2cpu(300, 1, 1),
            srat::build::memory(0, 0x1000_0000, 0, 1),
            srat::build::memory(0x1000_0000, 0x1000_0000, 1, 1),
        ],
    );
    let whole_slit = slit::build::slit(2, &[10, 20, 20, 10]);
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    for _ in 0..TRIES {
        let cpus = madt::parse(&rng.damage(&whole_madt), 254).unwrap_or_default();
        let srat = srat::parse(&rng.damage(&whole_srat)).ok();
        let slit_bytes = rng.damage(&whole_slit);
        let slit = slit::parse(&slit_bytes).ok();
        let machine = Machine::assemble(0, &cpus, srat.as_ref(), slit.as_ref());
        let machine = machine.expect("two damaged records name few domains");
        assert!(!machine.cpus.is_empty() && machine.nodes > 0, "ACPI-2");
    }
}
