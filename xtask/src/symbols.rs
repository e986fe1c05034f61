//! Addresses of the kernel made readable: function, file and line, inlined frames first.

use std::path::{Path, PathBuf};

use addr2line::Loader;

/// The kernel is linked into the top 2 GiB of the address space.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// The debug information of one kernel ELF.
pub struct Symbols {
    loader: Loader,
    root: PathBuf,
}

impl Symbols {
    /// Opens the ELF; `None` when it has no debug information that can be read.
    #[must_use]
    pub fn load(kernel: &Path, root: &Path) -> Option<Symbols> {
        Loader::new(kernel).ok().map(|loader| Symbols { loader, root: root.to_path_buf() })
    }

    /// The frames at an address, innermost first, each as `function at file:line`.
    #[must_use]
    pub fn frames(&self, address: u64) -> Vec<String> {
        let symbol =
            || self.loader.find_symbol(address).map(|name| without_hash(&rustc_demangle::demangle(name).to_string()));
        let mut lines = Vec::new();
        // The loader looks for ranges that end behind the address: none does behind the last.
        if address != u64::MAX
            && let Ok(mut frames) = self.loader.find_frames(address)
        {
            while let Ok(Some(frame)) = frames.next() {
                let function =
                    frame.function.as_ref().and_then(|name| name.demangle().ok().map(|name| without_hash(&name)));
                let place = frame.location.as_ref().and_then(|at| Some((self.shorter(at.file?), at.line.unwrap_or(0))));
                if function.is_none() && place.is_none() {
                    continue;
                }
                // Line tables alone leave out functions into which nothing was inlined; the symbol table has them.
                let function = function.or_else(symbol).unwrap_or_else(|| "?".to_owned());
                lines.push(place.map_or(function.clone(), |(file, line)| format!("{function} at {file}:{line}")));
            }
        }
        if lines.is_empty() {
            lines.extend(symbol());
        }
        let last = lines.len().saturating_sub(1);
        lines.iter_mut().take(last).for_each(|line| line.push_str(" (inlined)"));
        lines
    }

    /// A path as seen from the checkout, the standard library or the crate it belongs to.
    fn shorter<'a>(&self, file: &'a str) -> &'a str {
        let root = self.root.to_string_lossy();
        let inside = file.strip_prefix(root.as_ref()).map(|rest| rest.trim_start_matches('/'));
        let library = || file.find("/library/").filter(|_| file.starts_with("/rustc/") || file.contains("/rustlib/"));
        let registry =
            || file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/')).map(|(_, rest)| rest);
        inside.or_else(|| library().map(|at| &file[at + 1..])).or_else(registry).unwrap_or(file)
    }
}

/// A name without its hash.
#[must_use]
pub fn without_hash(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => path.to_owned(),
        _ => name.to_owned(),
    }
}

/// Every kernel address written out in a line of text.
pub fn addresses(line: &str) -> impl Iterator<Item = u64> {
    line.match_indices("0xffffffff").filter_map(|(at, _)| {
        let digits = line[at + 2..].bytes().take_while(u8::is_ascii_hexdigit).count();
        let address = (digits == 16).then(|| u64::from_str_radix(&line[at + 2..at + 18], 16).ok()).flatten()?;
        (address >= KERNEL_BASE).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_wherever_they_stand_in_a_line() {
        let found: Vec<u64> =
            addresses("#0 0xffffffff80001234, rip=0xffffffff8000abcd; cr2 0x10 0xffffffff1 0xffff800000000000")
                .collect();
        assert_eq!(found, [0xffff_ffff_8000_1234, 0xffff_ffff_8000_abcd]);
        assert_eq!(addresses("0xffffffff00000000 and 0xffffffff800012345").count(), 0);
    }

    #[test]
    fn the_hash_of_a_name_is_left_out() {
        assert_eq!(without_hash("arch::cpu::current::h0123456789abcdef"), "arch::cpu::current");
        assert_eq!(without_hash("arch::hosted::boot"), "arch::hosted::boot");
    }

    #[test]
    fn the_last_address_has_no_name() {
        let program = std::env::current_exe().unwrap();
        assert!(Symbols::load(&program, Path::new("/")).unwrap().frames(u64::MAX).is_empty());
    }

    #[test]
    fn an_address_of_this_very_program_has_a_name_and_a_line() {
        let program = std::env::current_exe().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let symbols = Symbols::load(&program, root).unwrap();
        let object_file = std::fs::read(&program).unwrap();
        let object = object::File::parse(&*object_file).unwrap();
        use object::{Object as _, ObjectSymbol as _};
        let symbol =
            object.symbols().find(|symbol| symbol.name().is_ok_and(|name| name.contains("xtask5shape"))).unwrap();
        let frames = symbols.frames(symbol.address());
        assert!(frames.iter().any(|frame| frame.contains("xtask")), "{frames:?}");
    }
}
