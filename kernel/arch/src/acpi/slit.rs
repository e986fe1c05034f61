//! SLIT: relative distances between proximity domains.
//!
//! Parsed from the raw bytes: the `acpi` crate's check squares the count once too often and hands
//! out an empty matrix for two or more nodes.
//!
//! Context: any (pure). Answers to `acpi_numa_slit_init` in `drivers/acpi/numa/srat.c` of Linux.

use super::walk::{self, Damage, le_u64};

/// Distance of a domain to itself.
pub(super) const SELF: u8 = 10;
/// Distance to another domain where no table says otherwise.
pub(super) const REMOTE: u8 = 20;

const FIXED_LEN: usize = walk::HEADER_LEN + 8;
/// Most localities that are accepted; a row of the matrix has this many bytes.
const MAX_LOCALITIES: u64 = 1024;

/// A checked distance matrix.
#[derive(Copy, Clone, Debug)]
pub struct Slit<'a> {
    localities: usize,
    matrix: &'a [u8],
}

impl Slit<'_> {
    /// Distance from one domain to another; the default where the matrix does not reach.
    pub fn distance(&self, from: u32, to: u32) -> u8 {
        let (row, column) = (from as usize, to as usize);
        if row < self.localities && column < self.localities {
            self.matrix[row * self.localities + column]
        } else {
            default_distance(from, to)
        }
    }
}

/// Distance where there is no table.
pub(super) fn default_distance(from: u32, to: u32) -> u8 {
    if from == to { SELF } else { REMOTE }
}

/// Reads a whole table, header included; the caller has checked signature and checksum.
///
/// # Errors
/// What is wrong with the table; nothing of a damaged table is used.
pub(super) fn parse(table: &[u8]) -> Result<Slit<'_>, Damage> {
    let too_short = Damage::Length { claimed: table.len() as u32 };
    if table.len() < FIXED_LEN {
        return Err(too_short);
    }
    let localities = le_u64(table, walk::HEADER_LEN);
    if localities == 0 {
        return Err(Damage::Empty);
    }
    if localities > MAX_LOCALITIES {
        return Err(Damage::TooMany);
    }
    let localities = localities as usize;
    let matrix = table.get(FIXED_LEN..FIXED_LEN + localities * localities).ok_or(too_short)?;
    for (index, &distance) in matrix.iter().enumerate() {
        let (from, to) = (index / localities, index % localities);
        if distance < SELF || (from == to) != (distance == SELF) {
            return Err(Damage::Distance { from, to });
        }
    }
    Ok(Slit { localities, matrix })
}

#[cfg(test)]
pub(super) mod build {
    //! A SLIT for the tests of this folder.
    extern crate std;
    use std::vec::Vec;

    pub(crate) fn slit(localities: u64, matrix: &[u8]) -> Vec<u8> {
        let mut body = localities.to_le_bytes().to_vec();
        body.extend_from_slice(matrix);
        super::super::walk::build::table(b"SLIT", 1, &body)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::build::slit;
    use super::*;

    #[test]
    fn an_asymmetric_matrix_is_read_row_by_row() {
        let table = slit(3, &[10, 21, 31, 22, 10, 41, 32, 42, 10]);
        let got = parse(&table).unwrap();
        assert_eq!((got.distance(0, 1), got.distance(1, 0), got.distance(2, 1)), (21, 22, 42));
    }

    #[test]
    fn domains_outside_the_matrix_get_the_defaults() {
        let table = slit(1, &[10]);
        let got = parse(&table).unwrap();
        assert_eq!((got.distance(0, 5), got.distance(5, 5)), (REMOTE, SELF));
    }

    #[test]
    fn a_matrix_cut_short_is_damage() {
        let table = slit(3, &[10, 21, 31, 22, 10, 41]);
        assert!(matches!(parse(&table), Err(Damage::Length { .. })));
    }

    #[test]
    fn a_huge_count_is_damage_and_does_not_overflow() {
        assert_eq!(parse(&slit(u64::MAX, &[10])).unwrap_err(), Damage::TooMany);
        assert_eq!(parse(&slit(1 << 32, &[10])).unwrap_err(), Damage::TooMany);
    }

    #[test]
    fn a_wrong_diagonal_and_a_too_small_distance_are_damage() {
        let diagonal = slit(2, &[10, 20, 20, 20]);
        assert_eq!(parse(&diagonal).unwrap_err(), Damage::Distance { from: 1, to: 1 });
        let small = slit(2, &[10, 9, 20, 10]);
        assert_eq!(parse(&small).unwrap_err(), Damage::Distance { from: 0, to: 1 });
    }

    #[test]
    fn a_matrix_of_nothing_is_damage() {
        assert_eq!(parse(&slit(0, &[])).unwrap_err(), Damage::Empty);
        assert_eq!(parse(&slit(0, &[0; 64])).unwrap_err(), Damage::Empty, "a table full of zeros");
    }
}
