//! `slab_debug=` on the command line (M-16).
//!
//! ```text
//! slab_debug[=[LETTERS][,CACHE…][;[LETTERS][,CACHE…]]…]
//! ```
//!
//! A block without caches is for all caches that no other block names; of several the last counts. In a list a name
//! may end in `*`. The first block with a list that names a cache decides about it, also against a block for all. A block
//! without letters stands for `FZPU`, and so does `slab_debug` alone; `-` stands for none. `O` in any block is said about
//! every cache.
//!
//! ```text
//! slab_debug                    FZPU for every cache
//! slab_debug=FU                 checks and users for every cache
//! slab_debug=P,kmalloc-*,inode  poison for these
//! slab_debug=FZ;-,kmem_cache*   checks and red zones for all but these
//! ```
//!
//! Unlike in Linux a letter that is not known is refused, and so are a name without letters, a `*` that does not end a
//! name, and a name that is empty: each would otherwise be debugging that is silently missing.
//!
//! Answers to `parse_slub_debug_flags` and `kmem_cache_flags` in Linux `mm/slub.c` (7.x).

use super::DebugFlags;

sync::param! {
    /// Which slab caches check what: letters F consistency, Z red zones, P poison, U users, T trace, A failslab may be used,
    /// O off where slabs would need a higher order, - nothing; then caches, if not all; blocks are separated by ";".
    static SLAB_DEBUG: str = "slab_debug", default "-", if |text| is_valid(text), form FORM;
}

/// What is allowed, in one line.
const FORM: &str =
    "[LETTERS][,CACHE...][;...] with letters of FZPUTAO or - alone, and caches by name or NAME*; nothing is FZPU";

/// What a block without letters means.
const DEFAULT: DebugFlags =
    DebugFlags::CONSISTENCY.union(DebugFlags::RED_ZONE).union(DebugFlags::POISON).union(DebugFlags::STORE_USER);

/// What the command line says about the cache `name`.
pub(super) fn flags_of(name: &str) -> DebugFlags {
    find(SLAB_DEBUG.get(), name)
}

fn is_valid(text: &str) -> bool {
    text.split(';').all(|block| {
        let (letters, caches) = split(block);
        parse_letters(letters).is_some() && caches.is_none_or(|caches| caches.split(',').all(is_valid_name))
    })
}

fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && !name.strip_suffix('*').unwrap_or(name).contains('*')
}

/// What `text`, which is valid, says about the cache `name`.
fn find(text: &str, name: &str) -> DebugFlags {
    let (mut all, mut named, mut order) = (DebugFlags::empty(), None, DebugFlags::empty());
    for block in text.split(';') {
        let (letters, caches) = split(block);
        let flags = parse_letters(letters).unwrap_or(DebugFlags::empty());
        order |= flags & DebugFlags::NO_HIGHER_ORDER;
        match caches {
            None => all = flags,
            Some(caches) if caches.split(',').any(|cache| is_meant(cache, name)) => named = named.or(Some(flags)),
            Some(_) => {}
        }
    }
    named.unwrap_or(all) | order
}

/// Letters, and caches if the block names any.
fn split(block: &str) -> (&str, Option<&str>) {
    block.split_once(',').map_or((block, None), |(letters, caches)| (letters, Some(caches)))
}

fn is_meant(cache: &str, name: &str) -> bool {
    cache.strip_suffix('*').map_or(cache == name, |prefix| name.starts_with(prefix))
}

fn parse_letters(letters: &str) -> Option<DebugFlags> {
    match letters {
        "" => Some(DEFAULT),
        "-" => Some(DebugFlags::empty()),
        _ => letters.chars().map(DebugFlags::of_letter).try_fold(DebugFlags::empty(), |all, flag| Some(all | flag?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(text: &str, name: &str) -> std::string::String {
        assert!(is_valid(text), "{text}");
        find(text, name).iter_names().map(|(name, _)| name.chars().next().unwrap()).collect()
    }

    #[test]
    fn letters_caches_and_blocks_mean_what_they_mean_in_linux() {
        let all = find("FZPUTAO", "x");
        assert_eq!(all, DebugFlags::all());
        assert_eq!(find("fzputao", "x"), all, "small letters are letters, too");
        for (text, name, flags) in [
            ("", "x", DEFAULT),
            ("-", "x", DebugFlags::empty()),
            (",inode", "inode", DEFAULT),
            (",inode", "x", DebugFlags::empty()),
            ("P,inode,kmalloc-*", "kmalloc-64", DebugFlags::POISON),
            ("P,inode,kmalloc-*", "inodes", DebugFlags::empty()),
            ("F;Z,inode", "inode", DebugFlags::RED_ZONE),
            ("F;Z,inode", "x", DebugFlags::CONSISTENCY),
            ("Z,inode;F", "inode", DebugFlags::RED_ZONE),
            ("Z,in*;F,inode", "inode", DebugFlags::RED_ZONE),
            ("F;-,kmem*", "kmem_cache", DebugFlags::empty()),
            ("F;Z", "x", DebugFlags::RED_ZONE),
            ("F;O,inode", "x", DebugFlags::CONSISTENCY | DebugFlags::NO_HIGHER_ORDER),
        ] {
            assert_eq!(find(text, name), flags, "{text} for {name}: {}", show(text, name));
        }
    }

    #[test]
    fn what_would_be_silently_missing_is_refused() {
        for bad in ["X", "FX", "F-", "--", "F Z", "F,", "F,a,", "F,*a", "F,a*b", "F,a**", "F,a;Q", "F,,a", "0"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused_and_what_is_taken_can_be_asked(text in ".{0,40}", name in "[a-z0-9-]{0,8}") {
            if is_valid(&text) {
                find(&text, &name);
            }
        }

        #[test]
        fn texts_of_the_right_letters_find_each_cache_they_name(
            blocks in prop::collection::vec(("[FZPUTAO]{0,7}|-", prop::collection::vec("[a-z]{1,4}\\*?", 0..3)), 1..4),
            name in "[a-z]{1,4}",
        ) {
            let text: std::vec::Vec<_> = blocks.iter()
                .map(|(letters, caches)| std::iter::once(letters).chain(caches).cloned().collect::<std::vec::Vec<_>>().join(","))
                .collect();
            let text = text.join(";");
            prop_assert!(is_valid(&text), "{}", text);
            let named = blocks.iter()
                .find(|(_, caches)| caches.iter().any(|c| is_meant(c, &name)))
                .or(blocks.iter().rfind(|(_, caches)| caches.is_empty()));
            let flags = named.map_or(DebugFlags::empty(), |(letters, _)| parse_letters(letters).unwrap());
            prop_assert_eq!(find(&text, &name) - DebugFlags::NO_HIGHER_ORDER, flags - DebugFlags::NO_HIGHER_ORDER);
        }
    }
}
