//! Tests of parameters. Values are static, so each test has parameters of its own.

use std::{format, vec::Vec};

use super::*;

crate::param! {
    /// A number, for the tests.
    static NUMBER: u32 = "test.number", default 250, in 1..=10_000, unit "ticks a second";
}
crate::param! {
    /// A large number.
    static SIZE: u64 = "test.size", default 7, in 0..=u64::MAX;
}
crate::param! {
    /// A switch.
    static SWITCH: bool = "test.switch", default false;
}
crate::param! {
    /// A choice.
    static CHOICE: choice = "test.choice", default "halt", one of ["halt", "poll"];
}
crate::param! {
    /// A text.
    static TEXT: str = "test.text", default "";
}
crate::param! {
    /// A text of two parts.
    static PAIR: str = "test.pair", default "", if |text| text.split(',').count() == 2, form "<left>,<right>";
}
crate::param! {
    /// A text of letters, perhaps of none.
    static LETTERS: str = "test.letters", default "-", if |text| text.len() < 3, form "up to two letters";
}
crate::param! {
    /// Refuses what it is given.
    static REFUSES: u32 = "test.refuses", default 2, in 1..=3;
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no link sections, so no registry")]
fn each_kind_has_its_default_until_the_line_says_otherwise() {
    assert_eq!((NUMBER.get(), SIZE.get(), SWITCH.get()), (250, 7, false));
    assert_eq!((CHOICE.get(), TEXT.get(), NUMBER.is_set()), ("halt", "", false));
    let line = "test.number=1000 test.size=0x10M test.switch test.choice=poll test.text=\"a b\"";
    parse(line).unwrap();
    assert_eq!((NUMBER.get(), SIZE.get(), SWITCH.get()), (1000, 16 << 20, true));
    assert_eq!((CHOICE.get(), TEXT.get(), NUMBER.is_set()), ("poll", "a b", true));
    parse("test.number=1 test.number=2").unwrap();
    assert_eq!(NUMBER.get(), 2, "the last one counts");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no link sections, so no registry")]
fn a_bare_key_is_an_empty_text_where_the_form_allows_it() {
    assert_eq!(LETTERS.get(), "-");
    parse("test.letters").unwrap();
    assert_eq!((LETTERS.get(), LETTERS.is_set()), ("", true));
    let error = parse("test.pair").unwrap_err();
    assert_eq!(format!("{error}"), "\"test.pair\" needs a value: allowed is <left>,<right>");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no link sections, so no registry")]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let error = parse("test.refusse=1").unwrap_err();
    assert_eq!(error.nearest, Some("test.refuses"));
    assert_eq!(format!("{error}"), "unknown parameter \"test.refusse\"; the nearest known one is \"test.refuses\"");
    let error = parse("quite_another").unwrap_err();
    assert_eq!(format!("{error}"), "unknown parameter \"quite_another\"");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no link sections, so no registry")]
fn a_bad_value_is_refused_with_what_is_allowed() {
    for bad in ["test.refuses=4", "test.refuses=0", "test.refuses=x", "test.refuses="] {
        let error = parse(bad).unwrap_err();
        assert_eq!(error.allowed, Some(Kind::Number { min: 1, max: 3 }), "{bad}");
    }
    assert_eq!(
        format!("{}", parse("test.refuses=9").unwrap_err()),
        "bad value \"9\" for \"test.refuses\": allowed is a number from 1 to 3"
    );
    assert_eq!(
        format!("{}", parse("test.refuses").unwrap_err()),
        "\"test.refuses\" needs a value: allowed is a number from 1 to 3"
    );
    assert_eq!(REFUSES.get(), 2);
    assert_eq!(
        format!("{}", parse("test.pair=a").unwrap_err()),
        "bad value \"a\" for \"test.pair\": allowed is <left>,<right>"
    );
    assert!(parse("test.pair").is_err() && !PAIR.is_set());
    parse("test.pair=a,b").unwrap();
    assert_eq!(PAIR.get(), "a,b");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no link sections, so no registry")]
fn the_registry_knows_docs_and_units() {
    let entry = PARAMS.iter().find(|entry| entry.key == "test.number").unwrap();
    assert_eq!(entry.doc, [" A number, for the tests."]);
    assert_eq!(entry.unit, "ticks a second");
    assert_eq!(format!("{}", entry.show_default()), "250");
}

#[test]
fn words_are_split_at_spaces_outside_quotes() {
    let split: Vec<_> = words("  a=1 b  c=\"x y\" d== e=\"\" ").collect();
    assert_eq!(split, [("a", Some("1")), ("b", None), ("c", Some("x y")), ("d", Some("=")), ("e", Some(""))]);
}

#[test]
fn numbers_have_bases_and_suffixes_and_do_not_overflow() {
    assert_eq!(parse_number("0x1f"), Some(31));
    assert_eq!(parse_number("4k"), Some(4096));
    assert_eq!(parse_number("2G"), Some(2 << 30));
    assert_eq!(parse_number("18446744073709551615"), Some(u64::MAX));
    for bad in ["18446744073709551616", "18446744073709551615k", "-1", "", "k", "1T", "0x"] {
        assert_eq!(parse_number(bad), None, "{bad}");
    }
}

#[test]
fn edits_count_insertions_deletions_and_replacements() {
    assert_eq!(edits("kitten", "sitting"), 3);
    assert_eq!(edits("", "abc"), 3);
    assert_eq!(edits("abc", "abc"), 0);
    let long = "x".repeat(200);
    assert_eq!(edits(&long, &long), 0);
}
