//! The bytes that debug caches lay out, and how damage to them is found (M-16).
//!
//! | byte | where |
//! |---|---|
//! | 0x6b, at the end 0xa5 | content of a free object |
//! | 0x5a | content that was allocated and not written yet; padding |
//! | 0xbb, 0xcc | red zones of a free object, of one in use |
//!
//! Answers to `include/linux/poison.h` of Linux (7.x).

/// Content of a free object but for its last byte.
pub(crate) const FREE: u8 = 0x6b;
/// The last byte of a free object.
pub(crate) const END: u8 = 0xa5;
/// Content that nobody has written yet, and padding.
pub(crate) const UNUSED: u8 = 0x5a;
/// Red zones of a free object.
pub(crate) const RED_FREE: u8 = 0xbb;
/// Red zones of an object in use.
pub(crate) const RED_USED: u8 = 0xcc;

/// The first byte that is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    /// Where, counted from the beginning of what was looked at.
    pub(crate) at: usize,
    /// Bytes from there to the last that is wrong.
    pub(crate) len: usize,
    /// What is there.
    pub(crate) found: u8,
    /// What should be.
    pub(crate) expected: u8,
}

/// Damage to `bytes`, all of which should be `expected`.
pub(crate) fn check(bytes: &[u8], expected: u8) -> Option<Damage> {
    let at = bytes.iter().position(|&byte| byte != expected)?;
    let last = bytes.iter().rposition(|&byte| byte != expected).unwrap_or(at);
    Some(Damage { at, len: last - at + 1, found: bytes[at], expected })
}

/// Damage to the content of a free object.
pub(crate) fn check_free(bytes: &[u8]) -> Option<Damage> {
    let (last, content) = bytes.split_last()?;
    let tail = || check(core::slice::from_ref(last), END).map(|damage| Damage { at: content.len(), ..damage });
    match (check(content, FREE), tail()) {
        (Some(damage), Some(_)) => Some(Damage { len: bytes.len() - damage.at, ..damage }),
        (damage, tail) => damage.or(tail),
    }
}

/// Fills the content of a free object.
pub(crate) fn fill_free(bytes: &mut [u8]) {
    if let Some((last, content)) = bytes.split_last_mut() {
        content.fill(FREE);
        *last = END;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_change_to_a_free_object_is_found_where_it_is(len in 1..300_usize, at in any::<prop::sample::Index>(),
                                                             to: u8) {
            let mut bytes = std::vec![0; len];
            fill_free(&mut bytes);
            prop_assert_eq!(check_free(&bytes), None);
            let at = at.index(len);
            let expected = core::mem::replace(&mut bytes[at], to);
            let damage = (to != expected).then_some(Damage { at, len: 1, found: to, expected });
            prop_assert_eq!(check_free(&bytes), damage);
        }
    }

    #[test]
    fn damage_reaches_from_the_first_to_the_last_wrong_byte() {
        let mut bytes = [RED_USED; 16];
        assert_eq!(check(&bytes, RED_USED), None);
        (bytes[3], bytes[9]) = (1, 2);
        assert_eq!(check(&bytes, RED_USED), Some(Damage { at: 3, len: 7, found: 1, expected: RED_USED }));
        let mut object = [0; 8];
        fill_free(&mut object);
        (object[2], object[7]) = (0, 0);
        assert_eq!(check_free(&object), Some(Damage { at: 2, len: 6, found: 0, expected: FREE }));
    }
}
