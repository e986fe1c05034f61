//! The kernel's build id: the hash by which a log is matched with the file that printed it.
//!
//! The linker makes it (`--build-id`) and puts it into a note; the linker script says where the note lies.
//!
//! Context: any.

use core::fmt;

/// Bytes of the hash that are shown: as many as tell builds apart.
const SHOWN: usize = 8;

/// A note's three sizes and its name, `GNU`, before the hash itself.
const HEADER: usize = 16;

unsafe extern "C" {
    static __build_id_start: u8;
    static __build_id_end: u8;
}

/// Prints the build id's first bytes, or `unknown`.
pub(crate) struct BuildId;

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (&raw const __build_id_start, &raw const __build_id_end);
        // SAFETY: the linker script puts the two around the note, in constants of the image.
        let note = unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) };
        match note.get(HEADER..HEADER + SHOWN) {
            Some(hash) => hash.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            None => f.write_str("unknown"),
        }
    }
}
