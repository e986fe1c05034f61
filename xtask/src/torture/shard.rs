//! Shards: a list of scenarios is dealt out to the tasks of a job array, and their results are put together again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::exit::usage;

use super::results::Results;

/// The `k`-th of `n` parts of a list, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which.
    pub k: u32,
    /// Of how many.
    pub n: u32,
}

impl Shard {
    /// The whole list.
    pub const ALL: Shard = Shard { k: 1, n: 1 };

    /// Reads `K/N`.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Shard, String> {
        let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((k, n)) if 1 <= k && k <= n => Ok(Shard { k, n }),
            _ => Err("K/N with K from 1 to N, such as 2/8".to_owned()),
        }
    }

    /// Its part of a list: each `n`-th, so that neighbours, which are alike, come to different shards.
    pub fn of<T>(self, list: &[T]) -> impl Iterator<Item = &T> {
        list.iter().skip(self.k as usize - 1).step_by(self.n as usize)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.k, self.n)
    }
}

/// Puts the results of shards together, in the order of the list. The second is what is missing, in words.
///
/// # Errors
/// `Usage` for results that are not shards of one list, or for a shard that is given twice.
pub fn merge(mut shards: Vec<Results>) -> anyhow::Result<(Results, Vec<String>)> {
    shards.sort_by_key(|results| results.shard.k);
    let Some(first) = shards.first().cloned() else {
        return Err(usage("nothing to merge: name the folders or results.json of the shards"));
    };
    let n = first.shard.n;
    for results in &shards {
        let differs = |what: &str| usage(format!("shard {} is of another run: its {what} differs", results.shard));
        if results.shard.n != n {
            return Err(differs("number of shards"));
        }
        if results.list != first.list {
            return Err(differs("list of scenarios"));
        }
        if results.commit != first.commit {
            return Err(differs("commit"));
        }
    }
    if let Some(pair) = shards.windows(2).find(|pair| pair[0].shard == pair[1].shard) {
        return Err(usage(format!("shard {} is given twice", pair[0].shard)));
    }
    let mut missing = Vec::new();
    for k in 1..=n {
        let shard = Shard { k, n };
        match shards.iter().find(|results| results.shard == shard) {
            Some(results) if results.missing().is_empty() => {}
            Some(results) => missing.push(format!("shard {shard} did not run {}", results.missing().join(" "))),
            None => {
                let names: Vec<&str> = shard.of(&first.list).map(String::as_str).collect();
                missing.push(format!("shard {shard} is missing: {}", names.join(" ")));
            }
        }
    }
    let took_s = shards.iter().map(|results| results.took_s).sum();
    let exit = shards.iter().fold(crate::exit::Exit::Passed, |worst, results| {
        worst.worst(crate::exit::from_code(Some(results.exit.into())))
    });
    let mut outcomes: Vec<_> = shards.into_iter().flat_map(|results| results.outcomes).collect();
    let place = |name: &str| first.list.iter().position(|listed| listed == name);
    outcomes.sort_by_key(|outcome| place(&outcome.scenario));
    let mut merged = Results::new(first.list.clone(), Shard::ALL, first.commit, first.seed, outcomes);
    merged.took_s = took_s;
    merged.judge(exit);
    Ok((merged, missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::torture::results::tests::outcome;

    fn list() -> Vec<String> {
        ["A", "B", "C", "D", "E"].map(str::to_owned).to_vec()
    }

    fn shard(k: u32, n: u32, exit: Exit) -> Results {
        let shard = Shard { k, n };
        let outcomes = shard.of(&list()).map(|name| outcome(name, exit)).collect();
        Results::new(list(), shard, "abc".to_owned(), 7, outcomes)
    }

    #[test]
    fn every_scenario_is_in_exactly_one_shard() {
        for n in 1..=7 {
            let mut dealt: Vec<String> =
                (1..=n).flat_map(|k| Shard { k, n }.of(&list()).cloned().collect::<Vec<_>>()).collect();
            dealt.sort_unstable();
            assert_eq!(dealt, list(), "{n}");
        }
    }

    #[test]
    fn a_shard_is_written_as_two_numbers() {
        assert_eq!(Shard::parse("2/8"), Ok(Shard { k: 2, n: 8 }));
        for bad in ["0/8", "9/8", "2", "a/b", "1/0", ""] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_of_one_list_make_a_whole_in_its_order() {
        let (merged, missing) = merge(vec![shard(2, 2, Exit::Passed), shard(1, 2, Exit::Passed)]).unwrap();
        assert_eq!(merged.outcomes.iter().map(|outcome| &*outcome.scenario).collect::<Vec<_>>(), list());
        assert!(missing.is_empty() && merged.exit == 0);
        let (failed, _) = merge(vec![shard(2, 2, Exit::Passed), shard(1, 2, Exit::Panicked)]).unwrap();
        assert_eq!(failed.exit, Exit::Panicked.code());
    }

    #[test]
    fn what_is_missing_is_named_and_is_no_pass() {
        let mut cut = shard(3, 3, Exit::Passed);
        cut.outcomes.clear();
        let (merged, missing) = merge(vec![shard(1, 3, Exit::Passed), cut]).unwrap();
        assert_eq!(missing, ["shard 2/3 is missing: B E", "shard 3/3 did not run C"]);
        assert_eq!(merged.exit, Exit::Incomplete.code());
        assert_eq!(merged.missing(), ["B", "C", "E"]);
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let refused = |shards| merge(shards).unwrap_err().to_string();
        assert!(refused(vec![]).contains("nothing to merge"));
        assert!(refused(vec![shard(1, 2, Exit::Passed), shard(2, 3, Exit::Passed)]).contains("number of shards"));
        assert!(refused(vec![shard(1, 2, Exit::Passed), shard(1, 2, Exit::Passed)]).contains("given twice"));
        let other = Results { list: vec!["A".to_owned()], ..shard(2, 2, Exit::Passed) };
        assert!(refused(vec![shard(1, 2, Exit::Passed), other]).contains("list of scenarios"));
        let other = Results { commit: "abd".to_owned(), ..shard(2, 2, Exit::Passed) };
        assert!(refused(vec![shard(1, 2, Exit::Passed), other]).contains("commit"));
    }
}
