//! Where gdb is to stop. Functions are looked up here: most crates have line tables only, and gdb then knows a function by
//! its mangled name.

use std::path::Path;

use object::{Object as _, ObjectSymbol as _, SymbolKind};

use crate::exit::{Exit, stop, usage};
use crate::symbols::without_hash;

use super::{DEATH, FAILURE};

/// Names that are listed when several could be meant.
const LISTED: usize = 8;

/// The functions of a kernel and its loader, and the places to stop at.
#[derive(Debug)]
pub struct Places {
    functions: Vec<(String, u64)>,
    entry: u64,
    /// Commands of gdb.
    stops: Vec<String>,
    /// The machine runs until something goes wrong.
    to_the_end: bool,
}

impl Places {
    /// Of two ELFs.
    ///
    /// # Errors
    /// `Host` when a file cannot be read.
    pub fn of(kernel: &Path, loader: &Path) -> anyhow::Result<Places> {
        let mut functions = Vec::new();
        let mut entry = 0;
        for file in [loader, kernel] {
            let bad = |error: String| stop(Exit::Host, format!("{}: {error}", file.display()));
            let bytes = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
            let elf = object::File::parse(&*bytes).map_err(|error| bad(error.to_string()))?;
            let text = elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
            functions.extend(text.filter_map(|symbol| {
                let name = rustc_demangle::demangle(symbol.name().ok()?).to_string();
                Some((without_hash(&name), symbol.address()))
            }));
            entry = elf.entry();
        }
        Ok(Places { functions, entry, stops: Vec::new(), to_the_end: false })
    }

    /// Stops at a function, or at what else gdb knows as a place: `file:line`, `*0x…`.
    ///
    /// # Errors
    /// `Usage` for a name that is none, or that of several functions.
    pub fn stop_at(&mut self, place: &str) -> anyhow::Result<()> {
        if place.starts_with('*') || place.rsplit_once(':').is_some_and(|(_, line)| line.parse::<u32>().is_ok()) {
            self.stops.push(format!("break {place}"));
            return Ok(());
        }
        let address = self.address(place)?;
        self.stop_at_address(address);
        Ok(())
    }

    /// Stops at an address.
    pub fn stop_at_address(&mut self, address: u64) {
        self.stops.push(format!("break *{address:#x}"));
    }

    /// Does not stop at the kernel's first instruction.
    pub fn only_at_the_end(&mut self) {
        self.to_the_end = true;
    }

    /// The function of that path, or of the only one that ends with it.
    fn address(&self, name: &str) -> anyhow::Result<u64> {
        let ends = |path: &str| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with("::"));
        let mut found: Vec<_> = self.functions.iter().filter(|(path, _)| path == name).collect();
        if found.is_empty() {
            found = self.functions.iter().filter(|(path, _)| ends(path)).collect();
        }
        found.sort();
        found.dedup_by_key(|(_, address)| *address);
        match *found {
            [(_, address)] => Ok(*address),
            [] => Err(usage(format!(
                "--break {name}: no such function is left in the kernel or the loader (it may be inlined); file:line is allowed too"
            ))),
            _ => {
                let names: Vec<_> = found.iter().take(LISTED).map(|(path, _)| path.as_str()).collect();
                Err(usage(format!("--break {name} may be any of {}", names.join(", "))))
            }
        }
    }

    /// The commands that set all breakpoints and connect to the machine behind `socket`, up to the first stop.
    #[must_use]
    pub fn script(&mut self, socket: &Path) -> String {
        if self.stops.is_empty() && !self.to_the_end {
            self.stops.push(format!("tbreak *{:#x}", self.entry));
        }
        for end in [DEATH, FAILURE] {
            // A kernel without tests has no failing ones; one that is given may be any.
            match self.address(end) {
                Ok(address) => self.stop_at_address(address),
                Err(_) => eprintln!("grange: this kernel has no {end}: gdb will not stop there"),
            }
        }
        format!("{}\ntarget remote {}\ncontinue\n", self.stops.join("\n"), socket.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        let functions = [("grange::panic::die", 1), ("grange::panic::panic", 2), ("grange_rcu::panic", 3), ("die", 4)];
        let functions = functions.map(|(name, address)| (name.to_owned(), address)).to_vec();
        Places { functions, entry: 0x1000, stops: Vec::new(), to_the_end: false }
    }

    #[test]
    fn a_function_is_found_by_its_path_or_by_the_end_of_it() {
        let places = places();
        assert_eq!(places.address("panic::die").unwrap(), 1);
        assert_eq!(places.address("panic::panic").unwrap(), 2);
        assert_eq!(places.address("die").unwrap(), 4, "the whole path wins");
        assert!(places.address("ie").is_err(), "an end begins at a part of the path");
    }

    #[test]
    fn a_name_of_several_functions_or_of_none_is_refused() {
        let several = places().address("panic").unwrap_err().to_string();
        assert!(several.contains("grange::panic::panic, grange_rcu::panic"), "{several}");
        assert!(places().address("no_such").unwrap_err().to_string().contains("--break no_such"));
    }

    #[test]
    fn the_kernels_entry_is_where_it_stops_when_nothing_else_is_asked_for() {
        let script = |places: &mut Places| places.script(Path::new("/s"));
        assert!(script(&mut places()).starts_with("tbreak *0x1000\nbreak *0x1\ntarget remote /s\ncontinue\n"));
        let mut asked = places();
        asked.stop_at("kernel/src/start.rs:65").unwrap();
        asked.stop_at("*0x20").unwrap();
        assert!(script(&mut asked).starts_with("break kernel/src/start.rs:65\nbreak *0x20\nbreak *0x1\n"));
        let mut end = places();
        end.only_at_the_end();
        assert!(script(&mut end).starts_with("break *0x1\n"));
    }
}
