//! Every way a kernel file can be wrong, built by hand byte for byte.

use super::*;

const BASE: u64 = 0xffff_ffff_8000_0000;

/// A small kernel: text at `BASE`, data one page up, and a `.bootloader-config` section.
#[derive(Clone)]
struct Kernel {
    /// (vaddr, file size, memory size, flags)
    segments: Vec<(u64, u64, u64, u32)>,
    entry: u64,
    config: Option<Vec<u8>>,
}

impl Kernel {
    fn good() -> Self {
        let mut config = BootloaderConfig::new_default();
        config.mappings.physical_memory = Some(Mapping::Dynamic);
        Self {
            segments: vec![(BASE, 16, 16, 5), (BASE + PAGE, 8, 3 * PAGE, 6)],
            entry: BASE + 4,
            config: Some(config.serialize().to_vec()),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0u8; 64];
        let phoff = file.len() as u64;
        let body = phoff + 56 * self.segments.len() as u64;
        for &(vaddr, filesz, memsz, flags) in &self.segments {
            file.extend(1u32.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for field in [body, vaddr, vaddr, filesz, memsz, PAGE] {
                file.extend(field.to_le_bytes());
            }
        }
        file.extend([0x90; 64]);
        let names = file.len() as u64;
        file.extend(b"\0.shstrtab\0.bootloader-config\0");
        let config_at = file.len() as u64;
        let config = self.config.clone().unwrap_or_default();
        file.extend(&config);
        let shoff = file.len() as u64;
        let mut section = |name: u32, kind: u32, at: u64, size: u64| {
            file.extend(name.to_le_bytes());
            file.extend(kind.to_le_bytes());
            for field in [0, 0, at, size] {
                file.extend(field.to_le_bytes());
            }
            file.extend([0; 24]);
        };
        section(0, 0, 0, 0);
        section(1, 3, names, config_at - names);
        if self.config.is_some() {
            section(11, 1, config_at, config.len() as u64);
        }
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        file[16..20].copy_from_slice(&[2, 0, 62, 0]);
        file[20] = 1;
        file[24..32].copy_from_slice(&self.entry.to_le_bytes());
        file[32..40].copy_from_slice(&phoff.to_le_bytes());
        file[40..48].copy_from_slice(&shoff.to_le_bytes());
        let sections = 2 + u16::from(self.config.is_some());
        for (at, value) in [(52, 64), (54, 56), (56, self.segments.len() as u16), (58, 64), (60, sections), (62, 1)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    fn error(&self) -> LoadError {
        Image::parse(&self.bytes()).expect_err("this kernel must be refused")
    }
}

fn problem(error: LoadError) -> &'static str {
    match error {
        LoadError::Segment { problem, .. } => problem,
        other => panic!("expected a bad segment, got: {other}"),
    }
}

#[test]
fn a_good_kernel_is_accepted_with_its_segments_and_wishes() {
    let bytes = Kernel::good().bytes();
    let image = Image::parse(&bytes).unwrap();
    let found: Vec<_> = image.segments().map(|s| (s.vaddr, s.data.len(), s.pages(), s.write, s.execute)).collect();
    assert_eq!(found, [(BASE, 16, 1, false, true), (BASE + PAGE, 8, 3, true, false)]);
    assert_eq!(image.base(), BASE);
    assert_eq!(image.wishes.stack_size, 80 * 1024);
    assert_eq!(image.wishes.physical_at, None);
}

#[test]
fn a_file_that_is_no_elf_is_refused() {
    for file in [&b""[..], b"\x7f", b"#!/bin/sh\n", &[0; 4096]] {
        assert!(matches!(Image::parse(file), Err(LoadError::NotElf)));
    }
}

#[test]
fn a_kernel_cut_short_anywhere_is_refused_and_never_panics() {
    let bytes = Kernel::good().bytes();
    for len in 0..bytes.len() {
        assert!(Image::parse(&bytes[..len]).is_err(), "accepted {len} of {} bytes", bytes.len());
    }
}

#[test]
fn no_single_flipped_byte_makes_the_parser_panic() {
    let bytes = Kernel::good().bytes();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[at] ^= flip;
            let _ = Image::parse(&broken);
        }
    }
}

#[test]
fn kernels_for_other_machines_are_refused() {
    for (at, value, expected) in [(4, 1, "32-bit"), (5, 2, "big-endian"), (18, 183, "another")] {
        let mut bytes = Kernel::good().bytes();
        bytes[at] = value;
        let error = Image::parse(&bytes).unwrap_err();
        // A 32-bit or big-endian reading of the rest may fail before the class is looked at.
        let text = error.to_string();
        assert!(text.contains(expected) || matches!(error, LoadError::Damaged(_)), "{text}");
    }
}

#[test]
fn a_position_independent_executable_is_refused() {
    let mut bytes = Kernel::good().bytes();
    bytes[16] = 3;
    assert!(matches!(Image::parse(&bytes), Err(LoadError::NotExecutable(3))));
}

#[test]
fn a_writable_and_executable_segment_is_refused() {
    let mut kernel = Kernel::good();
    kernel.segments[0].3 = 7;
    assert_eq!(problem(kernel.error()), "is both writable and executable");
}

#[test]
fn segments_out_of_place_are_refused() {
    for (vaddr, memsz, expected) in [
        (0x20_0000, 16, "is not in the top 2 GiB"),
        (BASE + PAGE + 8, 16, "does not start on a page"),
        (BASE, 16, "shares a page with the segment before it"),
        (0xffff_ffff_ffff_e000, 0x1001, "is not in the top 2 GiB"),
        (0xffff_ffff_ffff_e000, u64::MAX, "wraps around"),
        (BASE + PAGE, 4, "is larger in the file than in memory"),
    ] {
        let mut kernel = Kernel::good();
        kernel.segments[1].0 = vaddr;
        kernel.segments[1].2 = memsz;
        assert_eq!(problem(kernel.error()), expected);
    }
}

#[test]
fn an_entry_point_outside_the_text_is_refused() {
    let mut kernel = Kernel::good();
    kernel.entry = BASE + PAGE;
    assert!(matches!(kernel.error(), LoadError::Entry(_)));
}

#[test]
fn a_kernel_with_nothing_to_load_is_refused() {
    let mut kernel = Kernel::good();
    kernel.segments = vec![(BASE, 0, 0, 5)];
    assert!(matches!(kernel.error(), LoadError::Empty));
}

#[test]
fn a_kernel_without_a_configuration_is_refused() {
    let mut kernel = Kernel::good();
    kernel.config = None;
    assert!(matches!(kernel.error(), LoadError::NoConfig));
    kernel.config = Some(vec![0; BootloaderConfig::SERIALIZED_LEN]);
    assert!(matches!(kernel.error(), LoadError::BadConfig(_)));
}

#[test]
fn another_minor_version_of_the_api_is_refused_and_both_are_named() {
    let mut kernel = Kernel::good();
    let config = kernel.config.as_mut().unwrap();
    config[18] += 1;
    let LoadError::ApiVersion { kernel: theirs, loader: ours } = kernel.error() else {
        panic!("expected a version error");
    };
    assert_eq!(theirs.1, ours.1 + 1);
}

#[test]
fn another_patch_version_of_the_api_is_accepted() {
    let mut kernel = Kernel::good();
    kernel.config.as_mut().unwrap()[20] += 1;
    assert!(Image::parse(&kernel.bytes()).is_ok());
}

#[test]
fn wishes_the_loader_does_not_grant_are_named() {
    let mut config = BootloaderConfig::new_default();
    let mut kernel = Kernel::good();
    kernel.config = Some(config.serialize().to_vec());
    assert!(matches!(kernel.error(), LoadError::Unsupported("no map of physical memory")));
    config.mappings.physical_memory = Some(Mapping::FixedAddress(1 << 46));
    config.mappings.aslr = true;
    kernel.config = Some(config.serialize().to_vec());
    assert!(matches!(kernel.error(), LoadError::Unsupported("a randomized address")));
}
