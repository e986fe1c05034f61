//! The in-kernel tests and benches, read from the kernel's ELF without booting it, and the filters that choose among them.
//!
//! The kernel's suites register themselves in the section `linkme_TESTS`, an array of
//! `#[repr(C)] TestCase { suite: &str, name: &str, file: &str, line: u32, tags: u32, budget_ms: u32, run: fn }`.
//! The benches do the same in `linkme_BENCHES`: `#[repr(C)] BenchCase { case: TestCase, counted: u32, timed: u32 }`.
//! The kernel is linked at a fixed address, so the pointers in it can be followed in the file.

use std::path::Path;

use globset::{Glob, GlobMatcher};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _};

use crate::exit::{Exit, stop, usage};
use crate::verdict::TestId;

/// Bytes of a `TestCase`: three `&str`, three `u32` with their padding, one function pointer.
const CASE_SIZE: usize = 3 * 16 + 3 * 4 + 4 + 8;
/// Bytes of a `BenchCase`: a `TestCase` and two `u32`.
const BENCH_SIZE: usize = CASE_SIZE + 2 * 4;
/// Where the fields of a `TestCase` lie.
const STRINGS: [usize; 3] = [0, 16, 32];
const LINE: usize = 48;
const TAGS: usize = 52;
const BUDGET: usize = 56;
const RUN: usize = 64;
/// Names and paths are short; a longer length means that this is no `TestCase`.
const MAX_STRING: usize = 512;

/// The tags of a test, as bits of its `tags`.
pub const TAG_NAMES: [(&str, u32); 2] = [("race", 1), ("slow", 2)];

/// One in-kernel test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelTest {
    /// Suite and name.
    pub id: TestId,
    /// Source file.
    pub file: String,
    /// Line in it: of the `ktest!` that the test stands in.
    pub line: u32,
    /// Bits of [`TAG_NAMES`].
    pub tags: u32,
    /// How long it may take, in the guest's milliseconds; 0 means the default.
    pub budget_ms: u32,
    /// Address of its function.
    pub entry: u64,
}

impl KernelTest {
    /// Whether the test is tagged `race`: it needs real concurrency.
    #[must_use]
    pub fn is_race(&self) -> bool {
        self.tags & 1 != 0
    }

    /// Whether the test is tagged `slow`: it takes minutes, and runs only where it is asked for.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.tags & 2 != 0
    }

    /// The line of the test itself. All tests of one `ktest!` know the line of that, and the line table gives the macro's
    /// for where they begin; so the source is asked, if it is there.
    #[must_use]
    pub fn own_line(&self, root: &Path) -> u32 {
        let source = std::fs::read_to_string(root.join(&self.file)).unwrap_or_default();
        let head = format!("fn {}(", self.id.name);
        let mut lines = (1..).zip(source.lines()).skip(self.line.saturating_sub(1) as usize);
        lines.find(|(_, line)| line.trim_start().starts_with(&head)).map_or(self.line, |(number, _)| number)
    }

    /// The names of its tags.
    pub fn tag_names(&self) -> impl Iterator<Item = &'static str> {
        TAG_NAMES.iter().filter(|(_, bit)| self.tags & bit != 0).map(|(name, _)| *name)
    }
}

/// One in-kernel bench.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBench {
    /// Its names and its place.
    pub test: KernelTest,
    /// What its median should not exceed where instructions are counted; 0 means no goal.
    pub counted: u32,
    /// The same in nanoseconds where the time is taken.
    pub timed: u32,
}

/// Reads the tests of a kernel, sorted as the kernel runs them: by suite, then by name.
///
/// # Errors
/// `Host` when the file cannot be read or its test section does not have the layout above.
pub fn list(kernel: &Path) -> anyhow::Result<Vec<KernelTest>> {
    let mut tests = read(kernel, "linkme_TESTS", CASE_SIZE, decode)?;
    tests.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(pair) = tests.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(stop(Exit::Host, format!("{}: two tests are called {}", kernel.display(), pair[0].id)));
    }
    Ok(tests)
}

/// Reads the benches of a kernel, sorted likewise.
///
/// # Errors
/// As [`list`].
pub fn list_benches(kernel: &Path) -> anyhow::Result<Vec<KernelBench>> {
    let mut benches = read(kernel, "linkme_BENCHES", BENCH_SIZE, |elf, bench| {
        let (case, goal) = bench.split_at_checked(CASE_SIZE)?;
        let limit = |at: usize| Some(u32::from_le_bytes(goal.get(at..at + 4)?.try_into().ok()?));
        Some(KernelBench { test: decode(elf, case)?, counted: limit(0)?, timed: limit(4)? })
    })?;
    benches.sort_by(|a, b| a.test.id.cmp(&b.test.id));
    Ok(benches)
}

/// Reads an array that linkme has put together, of elements of `size` bytes.
pub(crate) fn read<T>(
    kernel: &Path,
    section: &str,
    size: usize,
    decode: impl Fn(&object::File<'_>, &[u8]) -> Option<T>,
) -> anyhow::Result<Vec<T>> {
    let bad = |what: &str| stop(Exit::Host, format!("{}: {what}", kernel.display()));
    let bytes = std::fs::read(kernel).map_err(|error| bad(&error.to_string()))?;
    let elf = object::File::parse(&*bytes).map_err(|error| bad(&error.to_string()))?;
    let elements = array(&elf, section).chunks(size).map(|element| decode(&elf, element));
    elements.collect::<Option<_>>().ok_or_else(|| bad(&format!("the section {section} is not the array it should be")))
}

/// The array: the section by its name, or what lies between linkme's two symbols where the linker merged it.
fn array<'data>(elf: &object::File<'data>, name: &str) -> &'data [u8] {
    if let Some(section) = elf.section_by_name(name) {
        return section.data().unwrap_or_default();
    }
    let address = |name: &str| elf.symbols().find(|symbol| symbol.name() == Ok(name)).map(|symbol| symbol.address());
    match (address(&format!("__start_{name}")), address(&format!("__stop_{name}"))) {
        (Some(start), Some(stop)) if start < stop => at(elf, start, (stop - start) as usize).unwrap_or_default(),
        _ => &[],
    }
}

/// The file's bytes that are loaded at an address.
pub(crate) fn at<'data>(elf: &object::File<'data>, address: u64, length: usize) -> Option<&'data [u8]> {
    elf.segments().find_map(|segment| segment.data_range(address, length as u64).ok().flatten())
}

fn decode(elf: &object::File<'_>, case: &[u8]) -> Option<KernelTest> {
    let word = |offset: usize| Some(u64::from_le_bytes(case.get(offset..offset + 8)?.try_into().ok()?));
    let half = |offset: usize| Some(u32::from_le_bytes(case.get(offset..offset + 4)?.try_into().ok()?));
    let [suite, name, file] = STRINGS.map(|offset| text_at(elf, case, offset));
    Some(KernelTest {
        id: TestId { suite: suite?, name: name? },
        file: file?,
        line: half(LINE)?,
        tags: half(TAGS)?,
        budget_ms: half(BUDGET)?,
        entry: word(RUN)?,
    })
}

/// The text of the `&str` at an offset into an element.
pub(crate) fn text_at(elf: &object::File<'_>, element: &[u8], offset: usize) -> Option<String> {
    let word = |offset: usize| Some(u64::from_le_bytes(element.get(offset..offset + 8)?.try_into().ok()?));
    let length = usize::try_from(word(offset + 8)?).ok().filter(|&length| length <= MAX_STRING)?;
    std::str::from_utf8(at(elf, word(offset)?, length)?).ok().map(str::to_owned)
}

/// Which tests the user wants.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    globs: Vec<(String, GlobMatcher)>,
}

impl Filter {
    /// Reads the user's words.
    ///
    /// # Errors
    /// `Usage` for a word that is no glob.
    pub fn new(words: &[String]) -> anyhow::Result<Filter> {
        let mut globs = Vec::new();
        for word in words {
            let patterns =
                if word.contains('.') { vec![word.clone()] } else { vec![format!("{word}.*"), format!("*.{word}")] };
            for pattern in patterns {
                let glob = Glob::new(&pattern).map_err(|error| usage(format!("filter {word}: {error}")))?;
                globs.push((word.clone(), glob.compile_matcher()));
            }
        }
        Ok(Filter { globs })
    }

    /// Whether the user gave no words.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.globs.is_empty()
    }

    /// Whether the test is wanted.
    #[must_use]
    pub fn wants(&self, id: &TestId) -> bool {
        let text = id.to_string();
        self.is_all() || self.globs.iter().any(|(_, glob)| glob.is_match(&text))
    }
}

/// The value of `kunit.filter_glob` that chooses exactly `chosen` out of `all`: whole suites as `suite.*`, other tests by
/// as many words of their names as it takes, because the kernel's command line is short.
#[must_use]
pub fn filter_glob(all: &[KernelTest], chosen: &[TestId]) -> Option<String> {
    if all.iter().all(|test| chosen.contains(&test.id)) {
        return None;
    }
    let mut words: Vec<String> = Vec::new();
    for id in chosen {
        let whole = all.iter().filter(|test| test.id.suite == id.suite).all(|test| chosen.contains(&test.id));
        let word = if whole { format!("{}.*", id.suite) } else { beginning(all, chosen, id) };
        if words.last() != Some(&word) {
            words.push(word);
        }
    }
    Some(words.join(","))
}

/// The first words of the name of `id` that no test of its suite begins with but `chosen` ones; else the name.
fn beginning(all: &[KernelTest], chosen: &[TestId], id: &TestId) -> String {
    let other = |test: &&KernelTest| test.id.suite == id.suite && !chosen.contains(&test.id);
    let is_own = |words: &str| !all.iter().filter(other).any(|test| test.id.name.starts_with(words));
    let mut ends = id.name.match_indices('_').map(|(at, _)| &id.name[..=at]);
    ends.find(|words| is_own(words)).map_or_else(|| id.to_string(), |words| format!("{}.{words}*", id.suite))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(suite: &str, name: &str) -> KernelTest {
        let id = TestId { suite: suite.into(), name: name.into() };
        KernelTest { id, file: String::new(), line: 1, tags: 0, budget_ms: 0, entry: 0 }
    }

    fn chosen(words: &[&str]) -> Vec<String> {
        let filter = Filter::new(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()).unwrap();
        let all = [test("nmi", "nested"), test("percpu", "isolated"), test("percpu", "sum"), test("sum", "percpu2")];
        all.iter().filter(|test| filter.wants(&test.id)).map(|test| test.id.to_string()).collect()
    }

    #[test]
    fn a_word_without_a_dot_is_a_suite_or_a_test_of_any_suite() {
        assert_eq!(chosen(&["sum"]), ["percpu.sum", "sum.percpu2"]);
        assert_eq!(chosen(&["percpu"]), ["percpu.isolated", "percpu.sum"]);
        assert_eq!(chosen(&["per*.is*", "nmi"]), ["nmi.nested", "percpu.isolated"]);
        assert_eq!(chosen(&[]).len(), 4);
        assert!(chosen(&["nothing"]).is_empty());
    }

    #[test]
    fn the_line_of_a_test_is_that_of_its_head_in_the_source_or_else_of_its_block() {
        let root = tempfile::tempdir().unwrap();
        let source =
            "fn nested() {}\nktest! {\n    /// A.\n    fn other(t: &mut Test) {}\n    fn nested(t: &mut Test) {}\n}\n";
        std::fs::write(root.path().join("a.rs"), source).unwrap();
        let nested = KernelTest { file: "a.rs".into(), line: 2, ..test("nmi", "nested") };
        assert_eq!(nested.own_line(root.path()), 5);
        assert_eq!(KernelTest { file: "gone.rs".into(), ..nested }.own_line(root.path()), 2);
    }

    #[test]
    fn a_broken_glob_is_named() {
        let error = Filter::new(&["a.[".to_owned()]).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Usage);
        assert!(error.to_string().contains("filter a.["));
    }

    #[test]
    fn whole_suites_are_written_short_and_everything_needs_no_filter() {
        let all = [test("nmi", "nested"), test("percpu", "isolated"), test("percpu", "sum")];
        let ids: Vec<TestId> = all.iter().map(|test| test.id.clone()).collect();
        assert_eq!(filter_glob(&all, &ids), None);
        assert_eq!(filter_glob(&all, &ids[1..]).as_deref(), Some("percpu.*"));
        assert_eq!(filter_glob(&all, &ids[..2]).as_deref(), Some("nmi.*,percpu.isolated"));
    }

    #[test]
    fn tests_of_a_suite_are_written_as_short_as_others_of_it_let_them() {
        let all =
            ["a_cpu_goes", "a_cpu_comes", "a_cpu", "no_cpu_is_lost", "no_cpu_is_new"].map(|name| test("hotplug", name));
        let ids = |which: &[usize]| which.iter().map(|&at| all[at].id.clone()).collect::<Vec<_>>();
        for (which, glob) in [
            (&[0][..], "hotplug.a_cpu_goes"),
            (&[2], "hotplug.a_cpu"),
            (&[0, 1], "hotplug.a_cpu_*"),
            (&[0, 3, 4], "hotplug.a_cpu_goes,hotplug.no_*"),
        ] {
            assert_eq!(filter_glob(&all, &ids(which)).as_deref(), Some(glob));
        }
    }

    #[test]
    fn a_file_that_is_no_elf_is_the_hosts_trouble() {
        let error = list(Path::new(file!())).or_else(|_| list(Path::new("/proc/version"))).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Host);
    }
}
