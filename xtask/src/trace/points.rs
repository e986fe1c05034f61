//! The trace points of a kernel, read from its ELF, and what their fields mean.
//!
//! The kernel's points register themselves in the section `linkme_POINTS`, an array of
//! `#[repr(C)] Point { name: &str, fields: &[&str], file: &str, line: u32, key: &StaticKey }` (`kernel/sync/src/trace/mod.rs`).
//! A record names its point by the index.

use std::collections::HashMap;
use std::path::Path;

use object::{Object as _, ObjectSymbol as _};

use crate::exit::{Exit, stop};
use crate::kernel_tests::{at, read, text_at};
use crate::symbols::without_hash;

/// Bytes of a `Point`: two `&str`, a slice, a line with its padding, a pointer.
const SIZE: usize = 3 * 16 + 8 + 8;
/// Most fields of a point.
pub const MAX_FIELDS: usize = 4;

/// A trace point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// `category.what`.
    pub name: String,
    /// Names of its fields.
    pub fields: Vec<String>,
    /// Source file and line.
    pub place: String,
}

/// The points of one kernel.
///
/// # Errors
/// `Host` when the file cannot be read, or its section does not have the layout above.
pub fn list(kernel: &Path) -> anyhow::Result<Vec<Point>> {
    read(kernel, "linkme_POINTS", SIZE, decode)
}

fn decode(elf: &object::File<'_>, point: &[u8]) -> Option<Point> {
    let (first, count) = (word(point, 16)?, usize::try_from(word(point, 24)?).ok()?);
    let names = if count == 0 { &[] } else { at(elf, first, (count <= MAX_FIELDS).then_some(16 * count)?)? };
    let fields = (0..count).map(|which| text_at(elf, names, 16 * which)).collect::<Option<_>>()?;
    let line = u32::from_le_bytes(point.get(48..52)?.try_into().ok()?);
    let place = format!("{}:{line}", text_at(elf, point, 32)?);
    Some(Point { name: text_at(elf, point, 0)?, fields, place })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What values of fields called `cache` and `func` mean: texts and functions of the kernel's image.
#[derive(Debug, Default)]
pub struct Names {
    image: Vec<u8>,
    functions: HashMap<u64, String>,
}

impl Names {
    /// The names of this kernel.
    ///
    /// # Errors
    /// `Host` when the file cannot be read.
    pub fn load(kernel: &Path) -> anyhow::Result<Names> {
        let bad = |what: String| stop(Exit::Host, format!("{}: {what}", kernel.display()));
        let image = std::fs::read(kernel).map_err(|error| bad(error.to_string()))?;
        let elf = object::File::parse(&*image).map_err(|error| bad(error.to_string()))?;
        let name = |name: &str| without_hash(&rustc_demangle::demangle(name).to_string());
        let functions = elf.symbols().filter_map(|s| Some((s.address(), name(s.name().ok()?)))).collect();
        Ok(Names { image, functions })
    }

    /// The function at an address, or the address.
    #[must_use]
    pub fn function(&self, address: u64) -> String {
        self.functions.get(&address).cloned().unwrap_or_else(|| format!("{address:#x}"))
    }

    /// The text that a field points to: its address in the lower 48 bits, its length in the upper 16.
    #[must_use]
    pub fn text(&self, field: u64) -> String {
        let elf = object::File::parse(&*self.image).ok();
        let (address, length) = ((field << 16) as i64 >> 16, (field >> 48) as usize);
        let bytes = elf.as_ref().and_then(|elf| at(elf, address as u64, length));
        // A text that was made while the kernel ran is not in its image.
        bytes.map_or_else(|| format!("{address:#x}"), |bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// A value as it is shown.
    #[must_use]
    pub fn show(&self, field: &str, value: u64) -> String {
        match field {
            "cache" => self.text(value),
            "func" => self.function(value),
            // Numbers of grace periods begin just below the wrap.
            "gp" | "target" | "cookie" | "norm" | "exp" | "number" => (value as i64).to_string(),
            _ if value >= 1 << 32 => format!("{value:#x}"),
            _ => value.to_string(),
        }
    }
}

/// The letters of fields called `name0` and `name1`.
#[must_use]
pub fn letters(words: [u64; 2]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_what_their_fields_are() {
        let names = Names { image: Vec::new(), functions: HashMap::from([(0x1000, "free_it".to_owned())]) };
        for (field, value, shown) in [
            ("func", 0x1000, "free_it"),
            ("func", 0x1001, "0x1001"),
            ("gp", u64::MAX - 1199, "-1200"),
            ("waiting", 12, "12"),
            ("head", 0xffff_8880_0000_1000, "0xffff888000001000"),
            ("cache", 5 << 48 | 0xffff_8000_0000, "0xffffffff80000000"),
        ] {
            assert_eq!(names.show(field, value), shown, "{field}");
        }
        assert_eq!(letters([u64::from_le_bytes(*b"rcu_pree"), u64::from_le_bytes(*b"mpt\0\0\0\0\0")]), "rcu_preempt");
    }
}
