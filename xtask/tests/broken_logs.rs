//! A corpus of broken logs: none of them may be judged a pass.
//!
//! Each starts from a log that is one, and is broken in one way: by the line (cut, garbled, doubled, swapped), by a
//! kernel that says something wrong in well-formed frames, or by how QEMU ended.

#[expect(dead_code, reason = "each test program uses a part of it")]
mod support;

use support::{TESTS, Transcript, ids};
use xtask::exit::Exit;
use xtask::frames::{Kind, encode};
use xtask::verdict::{Asked, Ending, Stream, judge};

const SEED: u64 = 7;
const SHAPE: (u32, u32) = (4, 2);
const PASS: Ending = Ending::Status(33);

fn good() -> Transcript {
    Transcript::run(SEED, SHAPE, &TESTS, &[], None)
}

fn judged(bytes: &[u8], ending: &Ending) -> (Exit, String) {
    let asked = Asked { seed: SEED, cpus: SHAPE.0, nodes: SHAPE.1, tests: ids() };
    let verdict = judge(&Stream::read(bytes), ending, &asked);
    let complaints = verdict.complaints().cloned().collect::<Vec<_>>().join("; ");
    (verdict.exit, complaints)
}

#[test]
fn the_log_they_are_made_from_is_a_pass() {
    assert_eq!(judged(good().encode().as_bytes(), &PASS), (Exit::Passed, String::new()));
}

#[test]
fn a_log_with_a_failed_test_is_a_failure_and_not_a_broken_log() {
    let log = Transcript::run(SEED, SHAPE, &TESTS, &["a_storm_loses_none"], None);
    assert_eq!(judged(log.encode().as_bytes(), &Ending::Status(35)), (Exit::TestsFailed, String::new()));
}

/// Breaks the bytes on the line.
type Line = fn(&str) -> String;

const BROKEN_LINES: &[(&str, Line, &str)] = &[
    ("empty", |_| String::new(), "no start mark"),
    ("only_a_newline", |_| "\n".into(), "not a frame"),
    ("only_text_that_claims_success", |_| "4 passed, 0 failed\nok\n".into(), "not a frame"),
    ("cut_in_the_end_mark", |log| log[..log.len() - 3].into(), "cut in the middle"),
    ("cut_only_the_last_newline", |log| log[..log.len() - 1].into(), "cut in the middle"),
    ("cut_before_the_end_mark", |log| without(log, -1), "no end mark"),
    ("cut_half_way", |log| log[..log.len() / 2].into(), "no end mark"),
    ("first_frame_lost", |log| without(log, 0), "frame 1 where 0 was due"),
    ("frame_in_the_middle_lost", |log| without(log, 7), "where 7 was due"),
    ("frame_doubled", |log| doubled(log, 7), "frame 7 where 8 was due"),
    ("end_mark_doubled", |log| doubled(log, -1), "was due"),
    ("two_frames_swapped", |log| swapped(log, 7, 8), "frame 8 where 7 was due"),
    ("whole_log_twice", |log| log.repeat(2), "frame 0 where"),
    ("two_cpus_print_at_once", interleaved, "not a frame"),
    ("console_text_between_frames", |log| inserted(log, 7, "PANIC cpu 1: oops\n"), "not a frame"),
    ("console_text_inside_a_frame", |log| log.replacen("Subtest", "Sub[  0.1] loguest", 1), "wrong CRC"),
    ("fake_ok_without_a_frame", |log| inserted(log, 7, "  ok 1 a_call_runs_once\n"), "not a frame"),
    ("fake_frame_with_a_made_up_crc", |log| inserted(log, 7, "#G 00000007 K   ok 1 x deadbeef\n"), "wrong CRC"),
    ("fake_frame_with_a_right_crc", |log| inserted(log, 7, &encode(7, Kind::Ktap, "  ok 1 x")), "was due"),
    ("not_ok_turned_into_ok", |_| failing().replacen("not ok 2 a_storm", "ok 2 a_storm", 1), "wrong CRC"),
    (
        "crc_of_another_frame",
        |log| log.replacen(&log[log.find('\n').unwrap() - 8..log.find('\n').unwrap()], "00000000", 1),
        "wrong CRC",
    ),
    ("crc_in_capitals", |log| capital_crc(log), "not a frame"),
    ("byte_lost", |log| log.replacen("isolated", "isolted", 1), "wrong CRC"),
    ("byte_doubled", |log| log.replacen("isolated", "isollated", 1), "wrong CRC"),
    ("nul_bytes_in_between", |log| inserted(log, 7, "\0\0\0"), "not a frame"),
    ("carriage_returns", |log| log.replace('\n', "\r\n"), "not a frame"),
    ("escape_codes_around", |log| format!("\x1b[2J{log}\x1b[0m"), "not a frame"),
    ("text_after_the_end_mark", |log| format!("{log}hello\n"), "not a frame"),
    (
        "frame_after_the_end_mark",
        |log| format!("{log}{}", encode(log.lines().count() as u32, Kind::Heartbeat, "{}")),
        "after the end mark",
    ),
];

/// Makes the kernel say something wrong in frames that are right.
type Kernel = fn(&mut Transcript);

const BROKEN_KERNELS: &[(&str, Kernel, &str)] = &[
    ("no_start_mark", |log| _ = log.frames.remove(0), "no start mark"),
    ("start_mark_twice", |log| log.frames.insert(1, log.frames[0].clone()), "2 start marks"),
    ("start_mark_is_no_json", |log| log.frames[0].1 = "hello".into(), "says v null"),
    ("other_version", |log| log.replace("\"v\":1", "\"v\":2"), "says v 2"),
    ("other_seed", |log| log.replace("\"seed\":7", "\"seed\":8"), "says seed 8"),
    ("cpus_missing", |log| log.replace("\"cpus\":4", "\"cpus\":3"), "says cpus 3, asked for was 4"),
    ("nodes_missing", |log| log.replace("\"nodes\":2", "\"nodes\":1"), "says nodes 1"),
    ("no_ktap_at_all", |log| log.frames.retain(|frame| frame.0 != Kind::Ktap), "no KTAP at all"),
    ("no_ktap_version", |log| _ = log.frames.remove(1), "expected `KTAP version 1`"),
    ("no_plan", |log| _ = log.frames.remove(2), "expected a plan"),
    ("plan_too_large", |log| log.replace("1..3", "1..4"), "3 of 4 suites"),
    ("plan_too_small", |log| log.replace("1..3", "1..2"), "after the end"),
    ("suite_plan_too_large", |log| log.replace("  1..2", "  1..3"), "ends after 2 of 3"),
    ("suite_plan_missing", |log| _ = log.frames.remove(log.at("  1..2")), "expected a plan `1..N`, found"),
    (
        "test_left_out_of_all_plans",
        |log| *log = Transcript::run(SEED, SHAPE, &TESTS[..3], &[], None),
        "no result for 1 of 4 tests, first percpu",
    ),
    ("no_test_ran", |log| *log = Transcript::run(SEED, SHAPE, &[], &[], None), "no result for 4 of 4"),
    ("result_twice", |log| log.frames.insert(9, log.frames[8].clone()), "number 1 where 2 was due"),
    ("results_swapped", |log| swap_payloads(log, "a_call_runs_once\",", "a_storm_loses_none\","), "had not begun"),
    ("result_missing", |log| _ = log.frames.remove(log.at("  ok 2 a_storm")), "ends after 1 of 2"),
    (
        "result_of_a_test_that_never_began",
        |log| _ = log.frames.remove(log.at("\"a_storm_loses_none\"")),
        "had not begun",
    ),
    ("test_begun_and_forgotten", |log| begin_again(log), "begins before"),
    ("begin_mark_without_a_name", |log| log.replace("\"name\":\"a_call", "\"nome\":\"a_call"), "names no test"),
    (
        "unknown_test",
        |log| log.frames.iter_mut().for_each(|frame| frame.1 = frame.1.replace("isolated", "shared")),
        "not asked for",
    ),
    ("suite_contradicts_its_tests", |log| log.replace("ok 1 ipi", "not ok 1 ipi"), "contradicts its tests"),
    ("suite_line_missing", |log| _ = log.frames.remove(log.at("ok 1 ipi")), "expected a result"),
    (
        "ok_with_timeout",
        |log| log.replace("  ok 2 a_storm_loses_none", "  ok 2 a_storm_loses_none # TIMEOUT"),
        "ok with the directive TIMEOUT",
    ),
    ("ok_with_todo", |log| log.replace("  ok 2 a_storm_loses_none", "  ok 2 a_storm_loses_none # TODO"), "TODO"),
    ("bail_out", |log| log.frames.insert(9, (Kind::Ktap, "Bail out! no memory".into())), "Bail out!"),
    ("no_end_mark", |log| _ = log.frames.pop(), "no end mark"),
    ("end_mark_is_no_json", |log| last(log, "bye"), "says planned null"),
    ("end_mark_early", |log| log.frames.insert(9, log.frames[log.frames.len() - 1].clone()), "after the end mark"),
    ("end_counts_too_many_passed", |log| log.replace("\"passed\":4", "\"passed\":5"), "says passed 5"),
    ("end_counts_a_failure", |log| log.replace("\"failed\":0", "\"failed\":1"), "says failed 1"),
    ("end_counts_a_skip", |log| log.replace("\"skipped\":0", "\"skipped\":1"), "says skipped 1"),
    ("end_counts_another_plan", |log| log.replace("\"planned\":4", "\"planned\":3"), "says planned 3"),
    (
        "end_counts_fewer_frames",
        |log| {
            let n = log.frames.len() - 1;
            log.replace(&format!("\"frames\":{n}"), "\"frames\":1")
        },
        "says frames 1",
    ),
    ("end_counts_as_text", |log| log.replace("\"passed\":4", "\"passed\":\"4\""), "says passed \"4\""),
];

const BROKEN_ENDINGS: &[(&str, Ending, Exit)] = &[
    ("status_0_a_triple_fault_or_a_reset", Ending::Status(0), Exit::Panicked),
    ("status_35_though_nothing_failed", Ending::Status(35), Exit::Incomplete),
    ("status_37_a_panic_after_the_end", Ending::Status(37), Exit::Panicked),
    ("status_39_a_stall_after_the_end", Ending::Status(39), Exit::Hung),
    ("status_1_from_qemu_itself", Ending::Status(1), Exit::Host),
    ("status_3_from_a_wild_write", Ending::Status(3), Exit::Incomplete),
    ("status_16_the_raw_value", Ending::Status(16), Exit::Incomplete),
    ("status_101_from_a_wrapper", Ending::Status(101), Exit::Incomplete),
    ("killed_by_a_signal", Ending::Signal(9), Exit::Host),
    ("interrupted", Ending::Interrupted, Exit::Interrupted),
];

#[test]
fn no_broken_line_is_a_pass() {
    let log = good().encode();
    for (name, break_it, expected) in BROKEN_LINES {
        refused(name, break_it(&log).as_bytes(), &PASS, expected);
    }
}

#[test]
fn no_kernel_that_says_something_wrong_is_a_pass() {
    for (name, break_it, expected) in BROKEN_KERNELS {
        let mut log = good();
        break_it(&mut log);
        refused(name, log.encode().as_bytes(), &PASS, expected);
    }
}

#[test]
fn no_strange_end_of_qemu_is_a_pass() {
    let log = good().encode();
    for (name, ending, expected) in BROKEN_ENDINGS {
        let (exit, complaints) = judged(log.as_bytes(), ending);
        assert_eq!(exit, *expected, "{name}: {complaints}");
        assert!(!complaints.is_empty(), "{name}");
    }
    let hung = Ending::Hung("no sign of life for 20 s".into());
    assert_eq!(judged(log.as_bytes(), &hung), (Exit::Hung, "no sign of life for 20 s".into()));
}

#[test]
fn no_prefix_of_a_good_log_is_a_pass() {
    let log = good().encode();
    for end in 0..log.len() {
        assert_eq!(judged(&log.as_bytes()[..end], &PASS).0, Exit::Incomplete, "first {end} bytes");
    }
}

#[test]
fn no_single_lost_byte_leaves_a_pass() {
    let log = good().encode();
    for at in 0..log.len() {
        let mut broken = log.clone().into_bytes();
        broken.remove(at);
        assert_ne!(judged(&broken, &PASS).0, Exit::Passed, "without byte {at}");
    }
}

#[test]
fn a_failed_test_is_no_pass_even_when_the_status_says_so() {
    assert_eq!(judged(failing().as_bytes(), &PASS).0, Exit::Incomplete);
}

#[test]
fn the_corpus_has_at_least_thirty_logs_with_names_of_their_own() {
    let mut names: Vec<&str> = BROKEN_LINES.iter().map(|(name, ..)| *name).collect();
    names.extend(BROKEN_KERNELS.iter().map(|(name, ..)| *name));
    names.extend(BROKEN_ENDINGS.iter().map(|(name, ..)| *name));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 30, "{count}");
}

fn refused(name: &str, bytes: &[u8], ending: &Ending, expected: &str) {
    let (exit, complaints) = judged(bytes, ending);
    assert_eq!(exit, Exit::Incomplete, "{name}: {complaints}");
    assert!(complaints.contains(expected), "{name}: {complaints:?} lacks {expected:?}");
}

fn failing() -> String {
    Transcript::run(SEED, SHAPE, &TESTS, &["a_storm_loses_none"], None).encode()
}

fn lines(log: &str) -> Vec<&str> {
    log.split_inclusive('\n').collect()
}

/// A position from the start, or with a minus from the end.
fn position(lines: &[&str], at: isize) -> usize {
    if at < 0 { lines.len() - at.unsigned_abs() } else { at.unsigned_abs() }
}

fn without(log: &str, at: isize) -> String {
    let mut lines = lines(log);
    lines.remove(position(&lines, at));
    lines.concat()
}

fn doubled(log: &str, at: isize) -> String {
    let mut lines = lines(log);
    let at = position(&lines, at);
    lines.insert(at, lines[at]);
    lines.concat()
}

fn swapped(log: &str, a: usize, b: usize) -> String {
    let mut lines = lines(log);
    lines.swap(a, b);
    lines.concat()
}

fn inserted(log: &str, at: usize, text: &str) -> String {
    let mut lines = lines(log);
    lines.insert(at, text);
    lines.concat()
}

/// Two frames, a character of one and a character of the other in turn.
fn interleaved(log: &str) -> String {
    let mut lines: Vec<String> = lines(log).into_iter().map(str::to_owned).collect();
    let (a, b) = (lines.remove(7), lines.remove(7));
    let mixed: String = a.chars().zip(b.chars()).flat_map(|(a, b)| [a, b]).collect();
    lines.insert(7, mixed);
    lines.concat()
}

fn capital_crc(log: &str) -> String {
    let mut broken = String::new();
    for line in log.lines() {
        let (body, crc) = line.rsplit_once(' ').unwrap();
        broken.push_str(&format!("{body} {}\n", crc.to_uppercase()));
    }
    broken
}

fn swap_payloads(log: &mut Transcript, a: &str, b: &str) {
    let (a, b) = (log.at(a), log.at(b));
    let payload = std::mem::take(&mut log.frames[a].1);
    log.frames[a].1 = std::mem::replace(&mut log.frames[b].1, payload);
}

fn begin_again(log: &mut Transcript) {
    let at = log.at("\"a_storm_loses_none\"");
    log.frames.insert(at, (Kind::Begin, r#"{"suite":"nmi","name":"arrives_with_interrupts_off"}"#.into()));
}

fn last(log: &mut Transcript, payload: &str) {
    let at = log.frames.len() - 1;
    log.frames[at].1 = payload.into();
}
