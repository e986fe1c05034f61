//! Splitting what was typed, and guessing what was meant.

/// The commands of a line: separated by `;`, without empty ones.
pub fn commands(line: &str) -> impl Iterator<Item = &str> {
    line.split(';').map(str::trim).filter(|command| !command.is_empty())
}

/// The known word that is nearest to `typed`, if one is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong, one at least.
    let limit = (typed.len() / 3).max(1);
    let scored = known.map(|word| (distance(typed, word), word));
    scored.filter(|&(distance, _)| distance <= limit).min().map(|(_, word)| word)
}

/// What all of `words` that begin with `start` have in common behind it, and how many there are.
pub fn completion<'a>(start: &str, words: impl Iterator<Item = &'a str>) -> (usize, &'a str) {
    let mut count = 0;
    let mut common: Option<&str> = None;
    for rest in words.filter_map(|word| word.strip_prefix(start)) {
        count += 1;
        common = Some(match common {
            None => rest,
            Some(before) => {
                let same = before.bytes().zip(rest.bytes()).take_while(|(a, b)| a == b).count();
                &before[..same]
            }
        });
    }
    (count, common.unwrap_or_default())
}

/// The longest word that is compared, in bytes.
const MAX: usize = 32;

/// How many letters were added, left out, changed or swapped with a neighbour (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > MAX || b.len() > MAX {
        return usize::MAX;
    }
    // Row `i % 3`, column `j`: from the first `i` letters of `a` to the first `j` of `b`.
    let mut rows = [[0; MAX + 1]; 3];
    rows[0] = core::array::from_fn(|column| column);
    for i in 1..=a.len() {
        let (this, last, before) = (i % 3, (i + 2) % 3, (i + 1) % 3);
        rows[this][0] = i;
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[last][j] + 1).min(rows[this][j - 1] + 1);
            best = best.min(rows[last][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[before][j - 2] + 1);
            }
            rows[this][j] = best;
        }
    }
    rows[a.len() % 3][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_separate_commands() {
        assert_eq!(commands(" cpus; mem --json;; ").collect::<Vec<_>>(), ["cpus", "mem --json"]);
    }

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_nonsense_finds_none() {
        let known = || ["cpus", "nodes", "mem", "irq", "dmesg", "poweroff"].into_iter();
        for (typed, expected) in [
            ("cpsu", Some("cpus")),
            ("node", Some("nodes")),
            ("dmseg", Some("dmesg")),
            ("powerof", Some("poweroff")),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known()), expected, "{typed}");
        }
    }

    #[test]
    fn completion_goes_as_far_as_the_candidates_agree() {
        let words = || ["params", "panic", "poweroff"].into_iter();
        assert_eq!(completion("pa", words()), (2, ""));
        assert_eq!(completion("par", words()), (1, "ams"));
        assert_eq!(completion("x", words()), (0, ""));
        assert_eq!(completion("a", ["abcx", "abcy"].into_iter()), (2, "bc"));
    }
}
