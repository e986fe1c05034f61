//! QEMU and its firmware.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Step, find_program, install};
use crate::exit::{Exit, stop};
use crate::process::output_of;
use crate::workspace::Workspace;

/// Where distributions put the BIOS that `-machine q35` starts with.
const FIRMWARE: [&str; 4] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu-kvm/bios-256k.bin",
    "/usr/local/share/qemu/bios-256k.bin",
];

/// The commands that install QEMU on Debian and its children.
#[must_use]
pub fn steps() -> [Step; 2] {
    [Step::root("apt-get update"), Step::root("apt-get install -y --no-install-recommends qemu-system-x86 seabios")]
}

/// Whether a QEMU that the distribution installed lacks its BIOS. One from elsewhere carries its own.
#[must_use]
pub fn lacks_firmware(program: &Path) -> bool {
    program.starts_with("/usr/bin") && !FIRMWARE.iter().any(|file| Path::new(file).is_file())
}

/// Makes sure of QEMU and returns the program's path.
///
/// # Errors
/// When it is not there and may not be installed, with what to type; when a path the user gave is no file.
pub fn ensure(workspace: &Workspace, program: &Path) -> anyhow::Result<PathBuf> {
    match find_program(program) {
        Some(found) if !lacks_firmware(&found) => return Ok(found),
        None if program.components().count() > 1 => {
            return Err(stop(Exit::Host, format!("--qemu {}: no such file", program.display())));
        }
        _ => {}
    }
    if find_program(Path::new("apt-get")).is_none() {
        return Err(stop(
            Exit::Host,
            format!(
                "{} is missing and there is no apt-get: install QEMU for x86_64 with SeaBIOS by hand",
                program.display()
            ),
        ));
    }
    install(workspace, "QEMU", &steps())?;
    find_program(program)
        .ok_or_else(|| stop(Exit::Host, format!("{} is still missing after the installation", program.display())))
}

/// The version QEMU gives, such as `7.2.22`.
#[must_use]
pub fn version(program: &Path) -> Option<String> {
    let text = output_of(Command::new(program).arg("--version"))?;
    let words = text.lines().next()?.split_whitespace();
    words.skip_while(|&word| word != "version").nth(1).map(str::to_owned)
}

/// Why KVM is not real here, if so: `/dev/kvm` has to open for reading and writing, and the CPU to say vmx or svm. Without
/// the latter `/dev/kvm` may still open (nested under another emulator), and a guest is a thousand times slower than with
/// TCG, or stops for good.
#[must_use]
pub fn kvm_lacks() -> Option<String> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm does not open for reading and writing: {error}"));
    }
    let real = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualisation(&text));
    (!real).then(|| "the CPU has neither vmx nor svm in /proc/cpuinfo, whatever /dev/kvm promises".to_owned())
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_whitespace).any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_cpus_own_flag_and_not_a_word_like_it() {
        assert!(has_virtualisation("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags : svm"));
        assert!(!has_virtualisation("model name : vmx\nflags : fpu vmx_flags svm_lock\n"));
    }

    #[test]
    fn a_given_path_that_is_no_file_is_refused_before_anything_is_installed() {
        let workspace = Workspace {
            root: std::env::temp_dir(),
            target: std::env::temp_dir(),
            no_install: false,
            core: crate::cli::CoreRoute::Auto,
            verbose: false,
        };
        let error = ensure(&workspace, Path::new("/no/such/qemu")).unwrap_err();
        assert!(error.to_string().contains("/no/such/qemu: no such file"), "{error}");
    }
}
