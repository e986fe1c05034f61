//! Command line parameters: declared where they are used, checked at boot, nothing ignored.
//!
//! ```
//! grange_sync::param! {
//!     /// Ticks a second.
//!     pub static HZ: u32 = "grange.hz", default 250, in 1..=10_000, unit "ticks a second";
//! }
//! grange_sync::param! {
//!     /// What an idle CPU does.
//!     pub static IDLE: choice = "idle", default "halt", one of ["halt", "poll"];
//! }
//! grange_sync::param! {
//!     /// Keep similar caches apart.
//!     pub static NOMERGE: bool = "slab_nomerge", default false;
//! }
//! grange_sync::param! {
//!     /// Checks, and the caches they are for.
//!     pub static DEBUG: str = "slab_debug", default "";
//! }
//! grange_sync::param! {
//!     /// Where to begin.
//!     pub static START: str = "start", default "", if |text| text.contains('.'), form "<suite>.<name>";
//! }
//! assert_eq!(HZ.get(), 250);
//! grange_sync::param::parse("grange.hz=1000 slab_nomerge idle=poll").unwrap();
//! assert_eq!((HZ.get(), NOMERGE.get(), IDLE.get()), (1000, true, "poll"));
//! let error = grange_sync::param::parse("grange.hs=1000").unwrap_err();
//! assert_eq!(error.nearest, Some("grange.hz"));
//! ```
//!
//! Words are separated by spaces; a value with spaces stands in double quotes. A bare key is a
//! `bool` that is true, or an empty text where the form of a text allows that. Where a key comes twice the last one counts. Numbers are decimal or `0x…`,
//! with a suffix k, M or G for powers of 1,024; a `bool` is `1 y yes on true` or `0 n no off false`.
//!
//! # Invariants
//!
//! - `PA-1` Values change only in [`parse`], at boot, before other CPUs run; [`Param::get`] is a
//!   relaxed load from then on.
//! - `PA-2` A key belongs to one parameter. Checked by [`parse`].
//!
//! Linux 6.12: kernel/params.c, where an unknown key is not an error.

use core::{
    fmt,
    sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

/// Every parameter of the program, in no order.
#[linkme::distributed_slice]
pub static PARAMS: [&'static Entry] = [..];

/// What is known of a parameter without its type.
#[derive(Debug)]
pub struct Entry {
    /// As on the command line.
    pub key: &'static str,
    /// Its documentation, a line a string, each with a leading space.
    pub doc: &'static [&'static str],
    /// What it counts, or nothing.
    pub unit: &'static str,
    /// What it may be.
    pub kind: Kind,
    value: &'static Value,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number in a range, both ends included.
    Number {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// Yes or no.
    Bool,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// Text of a form of its own.
    Form(Form),
}

/// A form that text must have.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// What is allowed, for people.
    pub what: &'static str,
    /// Whether a text has it.
    pub check: fn(&str) -> bool,
}

impl PartialEq for Form {
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what
    }
}

impl Eq for Form {}

/// Room for a value of any kind.
#[derive(Debug)]
pub struct Value {
    /// The number, or 0 and 1, or the length of the text.
    number: AtomicU64,
    /// The first byte of the text.
    text: AtomicPtr<u8>,
    /// Times it was set; 0 for "the default".
    set: AtomicUsize,
    /// What it is unless it is set: the number, if it is no text.
    default_number: u64,
    /// The same, if it is a text.
    default_text: &'static str,
}

impl Value {
    /// A number or truth value.
    #[must_use]
    pub const fn number(number: u64) -> Self {
        Self {
            number: AtomicU64::new(number),
            text: AtomicPtr::new(core::ptr::null_mut()),
            set: AtomicUsize::new(0),
            default_number: number,
            default_text: "",
        }
    }

    /// A text.
    #[must_use]
    pub const fn text(text: &'static str) -> Self {
        Self {
            number: AtomicU64::new(text.len() as u64),
            text: AtomicPtr::new(text.as_ptr().cast_mut()),
            set: AtomicUsize::new(0),
            default_number: 0,
            default_text: text,
        }
    }

    fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
        self.set.fetch_add(1, Ordering::Relaxed);
    }

    fn set_text(&self, text: &'static str) {
        self.text.store(text.as_ptr().cast_mut(), Ordering::Relaxed);
        self.set_number(text.len() as u64);
    }

    fn get_number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    fn get_text(&self) -> &'static str {
        let (first, len) = (self.text.load(Ordering::Relaxed), self.get_number() as usize);
        // SAFETY: both came from one `&'static str`: they change together only in `parse`, before
        // other CPUs run (`PA-1`).
        unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(first, len)) }
    }
}

/// A parameter of type `T`; made by [`param!`](crate::param!).
#[derive(Debug)]
pub struct Param<T: 'static> {
    value: &'static Value,
    from: fn(&Value) -> T,
}

impl<T> Param<T> {
    /// The value: what the command line says, else the default.
    ///
    /// Context: any. Wait-free.
    pub fn get(&self) -> T {
        (self.from)(self.value)
    }

    /// Whether the command line says anything about it.
    ///
    /// Context: any.
    pub fn is_set(&self) -> bool {
        self.value.set.load(Ordering::Relaxed) != 0
    }
}

macro_rules! param_of {
    ($($type:ty => |$value:ident| $get:expr;)+) => {$(
        impl Param<$type> {
            /// A parameter that is kept in `value`; for [`param!`](crate::param!).
            #[doc(hidden)]
            #[must_use]
            pub const fn new(value: &'static Value) -> Self {
                Self { value, from: |$value| $get }
            }
        }
    )+};
}
param_of! {
    u32 => |value| value.get_number() as u32;
    u64 => |value| value.get_number();
    bool => |value| value.get_number() != 0;
    &'static str => |value| value.get_text();
}

impl Entry {
    /// An entry; for [`param!`](crate::param!).
    #[doc(hidden)]
    #[must_use]
    pub const fn new(
        key: &'static str,
        doc: &'static [&'static str],
        unit: &'static str,
        kind: Kind,
        value: &'static Value,
    ) -> Self {
        Self { key, doc, unit, kind, value }
    }

    /// The value, for people.
    pub fn show(&self) -> impl fmt::Display + '_ {
        match self.kind {
            Kind::Number { .. } | Kind::Bool => self.shown(self.value.get_number(), ""),
            Kind::Choice(_) | Kind::Text | Kind::Form(_) => self.shown(0, self.value.get_text()),
        }
    }

    /// What it is unless the command line says otherwise, for people.
    pub fn show_default(&self) -> impl fmt::Display + '_ {
        self.shown(self.value.default_number, self.value.default_text)
    }

    fn shown(&self, number: u64, text: &'static str) -> Shown {
        Shown { kind: self.kind, number, text }
    }

    /// Whether the command line says anything about it.
    pub fn is_set(&self) -> bool {
        self.value.set.load(Ordering::Relaxed) != 0
    }

    /// Takes the value in; false if it is not one.
    fn set(&self, value: Option<&'static str>) -> bool {
        match (self.kind, value) {
            (Kind::Bool, None) => self.value.set_number(1),
            (Kind::Bool, Some(text)) => match parse_bool(text) {
                Some(truth) => self.value.set_number(u64::from(truth)),
                None => return false,
            },
            (Kind::Number { min, max }, Some(text)) => match parse_number(text) {
                Some(number) if (min..=max).contains(&number) => self.value.set_number(number),
                _ => return false,
            },
            (Kind::Choice(choices), Some(text)) => match choices.iter().find(|&&c| c == text) {
                Some(choice) => self.value.set_text(choice),
                None => return false,
            },
            (Kind::Text, Some(text)) => self.value.set_text(text),
            (Kind::Form(form), Some(text)) if (form.check)(text) => self.value.set_text(text),
            (Kind::Form(form), None) if (form.check)("") => self.value.set_text(""),
            (Kind::Form(_), Some(_)) => return false,
            (_, None) => return false,
        }
        true
    }
}

/// A value, for people.
struct Shown {
    kind: Kind,
    number: u64,
    text: &'static str,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Number { .. } => self.number.fmt(f),
            Kind::Bool => (self.number != 0).fmt(f),
            Kind::Choice(_) | Kind::Text | Kind::Form(_) => self.text.fmt(f),
        }
    }
}

/// Why a command line is refused; shown as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamError {
    /// The key as it was written.
    pub key: &'static str,
    /// The value as it was written, if there was one.
    pub value: Option<&'static str>,
    /// For an unknown key: the known one that it is nearest to.
    pub nearest: Option<&'static str>,
    /// For a bad value: what is allowed.
    pub allowed: Option<Kind>,
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.allowed, self.value) {
            (None, _) => {
                write!(f, "unknown parameter \"{}\"", self.key)?;
                match self.nearest {
                    Some(nearest) => write!(f, "; the nearest known one is \"{nearest}\""),
                    None => Ok(()),
                }
            }
            (Some(kind), Some(value)) => {
                write!(f, "bad value \"{value}\" for \"{}\": allowed is {kind}", self.key)
            }
            (Some(kind), None) => {
                write!(f, "\"{}\" needs a value: allowed is {kind}", self.key)
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Bool => f.write_str("1, y, yes, on, true or 0, n, no, off, false"),
            Self::Choice(choices) => {
                for (n, choice) in choices.iter().enumerate() {
                    let before = if n == 0 { "" } else { ", " };
                    write!(f, "{before}{choice}")?;
                }
                Ok(())
            }
            Self::Text => f.write_str("any text"),
            Self::Form(form) => f.write_str(form.what),
        }
    }
}

/// Takes the values of a command line in.
///
/// Context: boot CPU, before other CPUs run (`PA-1`).
///
/// # Errors
/// At the first word that is not known or has a bad value; words before it have been taken in.
///
/// # Panics
/// If two parameters have the same key (`PA-2`).
pub fn parse(line: &'static str) -> Result<(), ParamError> {
    for (n, entry) in PARAMS.iter().enumerate() {
        let twice = PARAMS[..n].iter().any(|other| other.key == entry.key);
        assert!(!twice, "PA-2: two parameters are called \"{}\"", entry.key);
    }
    for (key, value) in words(line) {
        let Some(entry) = PARAMS.iter().find(|entry| entry.key == key) else {
            return Err(ParamError { key, value, nearest: nearest(key), allowed: None });
        };
        if !entry.set(value) {
            return Err(ParamError { key, value, nearest: None, allowed: Some(entry.kind) });
        }
    }
    Ok(())
}

/// The known key with the fewest edits from `key`, if no more than a third of its letters are wrong; of several the first by
/// the alphabet.
fn nearest(key: &str) -> Option<&'static str> {
    let near = PARAMS.iter().map(|entry| (edits(key, entry.key), entry.key));
    near.filter(|&(edits, _)| 3 * edits <= key.len()).min().map(|(_, known)| known)
}

/// Splits into keys and values; see the module.
fn words(line: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut rest = line;
    core::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = rest
            .find(|c: char| {
                quoted ^= c == '"';
                c.is_whitespace() && !quoted
            })
            .unwrap_or(rest.len());
        let word;
        (word, rest) = rest.split_at(end);
        Some(match word.split_once('=') {
            Some((key, value)) => {
                let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                (key, Some(inner.unwrap_or(value)))
            }
            None => (word, None),
        })
    })
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "y" | "yes" | "on" | "true" => Some(true),
        "0" | "n" | "no" | "off" | "false" => Some(false),
        _ => None,
    }
}

fn parse_number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix(['k', 'K', 'M', 'G']) {
        Some(digits) => (
            digits,
            match text.as_bytes()[digits.len()] {
                b'M' => 20,
                b'G' => 30,
                _ => 10,
            },
        ),
        None => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(1 << shift)
}

/// The longest key that [`edits`] looks at in full.
const MAX_KEY: usize = 64;

/// Levenshtein's distance of two keys, of their first [`MAX_KEY`] bytes each.
fn edits(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (a, b) = (&a[..a.len().min(MAX_KEY)], &b[..b.len().min(MAX_KEY)]);
    // `row[j]`: edits from what has been seen of `a` to the first `j` bytes of `b`.
    let mut row: [usize; MAX_KEY + 1] = core::array::from_fn(|j| j);
    for (i, of_a) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, of_b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(of_a != of_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Declares a parameter; see [`param`](mod@crate::param).
#[macro_export]
macro_rules! param {
    ($(#[doc = $doc:literal])+ $vis:vis static $name:ident: u32 = $key:literal,
        default $default:expr, in $min:literal ..= $max:expr $(, unit $unit:literal)? $(,)?;) => {
        $crate::param!(@declare [$($doc),+] $vis $name u32, $key [$($unit)?]
            $crate::param::Kind::Number { min: $min, max: { const MAX: u32 = $max; MAX as u64 } },
            $crate::param::Value::number({ const DEFAULT: u32 = $default; DEFAULT as u64 }));
    };
    ($(#[doc = $doc:literal])+ $vis:vis static $name:ident: u64 = $key:literal,
        default $default:expr, in $min:literal ..= $max:expr $(, unit $unit:literal)? $(,)?;) => {
        $crate::param!(@declare [$($doc),+] $vis $name u64, $key [$($unit)?]
            $crate::param::Kind::Number { min: $min, max: $max },
            $crate::param::Value::number($default));
    };
    ($(#[doc = $doc:literal])+ $vis:vis static $name:ident: bool = $key:literal,
        default $default:expr $(,)?;) => {
        $crate::param!(@declare [$($doc),+] $vis $name bool, $key []
            $crate::param::Kind::Bool,
            $crate::param::Value::number($default as u64));
    };
    ($(#[doc = $doc:literal])+ $vis:vis static $name:ident: choice = $key:literal,
        default $default:expr, one of $choices:expr $(,)?;) => {
        $crate::param!(@declare [$($doc),+] $vis $name &'static str, $key []
            $crate::param::Kind::Choice(&$choices),
            $crate::param::Value::text($default));
    };
    ($(#[doc = $doc:literal])+ $vis:vis static $name:ident: str = $key:literal,
        default $default:expr $(,)?;) => {
        $crate::param!(@declare [$($doc),+] $vis $name &'static str, $key []
            $crate::param::Kind::Text,
            $crate::param::Value::text($default));
    };
    ($(#[doc = $doc:literal])+ $vis:vis static $name:ident: str = $key:literal,
        default $default:expr, if $check:expr, form $what:expr $(,)?;) => {
        $crate::param!(@declare [$($doc),+] $vis $name &'static str, $key []
            $crate::param::Kind::Form($crate::param::Form { what: $what, check: $check }),
            $crate::param::Value::text($default));
    };
    (@declare [$($doc:literal),+] $vis:vis $name:ident $type:ty, $key:literal [$($unit:literal)?]
        $kind:expr, $value:expr) => {
        $(#[doc = $doc])+
        $vis static $name: $crate::param::Param<$type> = {
            static VALUE: $crate::param::Value = $value;
            static ENTRY: $crate::param::Entry = $crate::param::Entry::new(
                $key, &[$($doc),+], concat!("" $(, $unit)?), $kind, &VALUE);
            #[$crate::private::linkme::distributed_slice($crate::param::PARAMS)]
            #[linkme(crate = $crate::private::linkme)]
            static REGISTERED: &'static $crate::param::Entry = &ENTRY;
            $crate::param::Param::<$type>::new(&VALUE)
        };
    };
}

#[cfg(test)]
#[path = "param_tests.rs"]
mod tests;
