//! The line of statistics, in the order of rcutorture's, and what in it is an error or too little.
//!
//! | word | what | must be 0 |
//! |---|---|---|
//! | `rtc`, `ver`, `tfle`, `rta`, `rtaf`, `rtf` | the current element; replacements; whether no element is free; elements taken, none to take, freed | |
//! | `rtmbe` | elements that were not whole when they were found | yes |
//! | `rtmbkf` | notes between three readers that were wrong, of how many: [`super::mbcheck`] | the first |
//! | `rtbe` | barriers that returned before a callback ran | yes |
//! | `rtbke` | threads that could not be had for boosting | yes |
//! | `rtbf`, `rtb` | boost trials that failed, and all; `raised` are readers that got a higher priority in them | `rtbf` |
//! | `nt` | sections in timers; with `hardirqs`, `softirqs`, `nmis`, `handed` and `exiting` the other places | |
//! | `cookies` | cookies that were over, or not over, when they must not be | yes |
//! | `barrier` | barriers that were right / tried : wrong | the last |
//! | `read-exits`, `nocb-toggles` | threads that ended with a section; CPUs offloaded, or no more | |
//! | `floods` | floods that came to their end / stopped because memory was short; `forward`: readers without a pause that let grace periods pass | |
//! | `stalls` | stalls made : not reported | the last |
//!
//! `Reader Pipe` counts sections by the stage of their element at the end: from the third number on each is a reader that was
//! not waited for. `Reader Batch` counts those by the grace periods that ended inside: the same. `Free-Block Circulation`
//! counts elements by the stage that they left. `Flood` counts callbacks that ran in each tenth of a second of the last flood.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::fwd::STEPS;
use super::interrupts::{Place, sum};
use super::pipe::STAGES;
use super::reader::{Seen, too_old};
use super::{Flavour, Torture};
use crate::torture::Stat;

/// Sections of threads, and replacements, that a run must have come to, of each flavour.
const LEAST_SECTIONS: u64 = 100;
const LEAST_REPLACED: u64 = STAGES as u64 + 2;

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

impl Flavour {
    fn ages(&self) -> [u64; STAGES + 1] {
        sum(self.all_seen().map(|seen| &seen.ages))
    }

    fn batches(&self) -> [u64; STAGES + 1] {
        sum(self.all_seen().map(|seen| &seen.batches))
    }

    fn early_cookies(&self) -> u64 {
        self.all_seen().map(|seen| get(&seen.early_cookies)).sum()
    }

    /// Sections of readers' threads.
    pub(super) fn sections(&self) -> u64 {
        self.seen.iter().map(Seen::sections).sum()
    }

    /// What is wrong that a sum over flavours would not tell the place of.
    fn judge(&self, out: &mut Stat) {
        let name = self.ops.name;
        let (ages, batches) = (self.ages(), self.batches());
        if too_old(&ages) != 0 {
            out.fail(format_args!("{name}: readers outlast a grace period, sections by age {ages:?}"));
        }
        if too_old(&batches) != 0 {
            out.fail(format_args!("{name}: grace periods that ended inside of a section: {batches:?}"));
        }
        let errors = &self.errors;
        for (what, count) in [
            ("cookies over inside of the section that they were made in", self.early_cookies()),
            ("rests of readers that were boosted", self.all_seen().map(|seen| get(&seen.still_boosted)).sum()),
            ("cookies not over when their callback ran", get(&self.pipe.figures.early_callbacks)),
            ("cookies not over after a wait", get(&errors.late_cookies)),
            ("cookies over and then not", get(&errors.reopened_cookies)),
            ("times that too many different cookies were open", get(&errors.too_many_cookies)),
        ] {
            if count != 0 {
                out.fail(format_args!("{name}: {count} {what}"));
            }
        }
    }

    fn cookie_errors(&self) -> u64 {
        let errors = &self.errors;
        self.early_cookies()
            + get(&self.pipe.figures.early_callbacks)
            + get(&errors.late_cookies)
            + get(&errors.reopened_cookies)
            + get(&errors.too_many_cookies)
    }
}

impl Torture {
    /// The sum over flavours of what `of` gives.
    fn total(&self, of: impl Fn(&Flavour) -> u64) -> u64 {
        self.flavours.iter().map(of).sum()
    }

    /// The least of what `of` gives.
    fn least(&self, of: impl Fn(&Flavour) -> u64) -> u64 {
        self.flavours.iter().map(of).min().unwrap_or(0)
    }

    /// Sections in `place`.
    fn at(&self, place: Place) -> u64 {
        self.total(|flavour| flavour.seen_there.at(place).sections())
    }

    pub(super) fn stat(&self, out: &mut Stat) {
        let setup = &self.setup;
        self.stat_pipe(out);
        out.error("rtmbe", self.total(|it| it.all_seen().map(|seen| get(&seen.not_live)).sum()));
        let (wrong, looks) =
            (self.total(|it| get(&it.pipe.checks.failures)), self.total(|it| get(&it.pipe.checks.looks)));
        out.text("rtmbkf", format_args!("{wrong}/{looks}"));
        if wrong != 0 {
            out.fail(format_args!("rtmbkf is {wrong}: a reader saw less than one that was waited for"));
        }
        out.error("rtbe", get(&self.rounds.bad));
        out.error("rtbke", get(&self.boosts.no_threads));
        out.error("rtbf", get(&self.boosts.failed));
        out.count("rtb", get(&self.boosts.trials));
        self.stat_places(out);
        let rounds = &self.rounds;
        out.text("barrier", format_args!("{}/{}:{}", get(&rounds.good), get(&rounds.tried), get(&rounds.bad)));
        let preempted = get(&self.preempted);
        if sched::config::PREEMPT.get() == "none" {
            out.error("preempted", preempted);
        } else {
            out.count("preempted", preempted);
        }
        out.count("read-exits", get(&self.read_exits));
        out.count("nocb-toggles", get(&self.toggles));
        out.error("cookies", self.total(Flavour::cookie_errors));
        out.count("raised", get(&self.boosts.raised));
        let progress = &self.progress;
        out.text("floods", format_args!("{}/{}", get(&progress.floods), get(&progress.stopped)));
        out.count("forward", get(&progress.readers));
        out.text("stalls", format_args!("{}:{}", get(&self.stalls.made), get(&self.stalls.unseen)));
        if get(&self.stalls.unseen) != 0 {
            out.fail(format_args!("a stall that was made on purpose was not reported"));
        }
        self.flavours.iter().for_each(|flavour| flavour.judge(out));
        out.work_of("sections", self.least(Flavour::sections), LEAST_SECTIONS);
        out.work("mb-checks", looks);
        let ways = self.least(|it| it.updates.iter().map(|(_, times)| get(times)).min().unwrap_or(0));
        out.work("each-update", ways);
        // Whatever is switched on has to have acted.
        for (name, on, n) in [
            ("barriers", setup.barrier_callbacks != 0, get(&rounds.good)),
            ("exiting", setup.read_exit_burst != 0, self.total(|flavour| flavour.seen_exiting.sections())),
            ("gp-delays", setup.gp_delay_ns != 0, get(&self.gp_delays)),
            ("toggled", setup.toggle_ns != 0, get(&self.toggles)),
            ("boosted", setup.boost_interval_ns != 0 && rcu::boost_delay() != 0, get(&self.boosts.trials)),
            ("stopped", self.stops_readers, self.total(|flavour| flavour.seen_stopped.sections())),
            ("flooded", setup.fwd_holdoff_ns != 0, get(&progress.floods) + get(&progress.stopped)),
            ("stalled", setup.stall.is_some(), get(&self.stalls.made)),
        ] {
            if on {
                out.work(name, n);
            }
        }
        self.stat_histograms(out);
    }

    /// From `rtc` to `rtf`.
    fn stat_pipe(&self, out: &mut Stat) {
        let figure = |of: fn(&Flavour) -> &AtomicU64| self.total(|flavour| get(of(flavour)));
        out.text("rtc", format_args!("{:#x}", self.flavours[0].pipe.current()));
        out.count("ver", figure(|it| &it.pipe.figures.replaced));
        out.count("tfle", u64::from(self.flavours.iter().any(|it| it.pipe.free_elements() == 0)));
        out.count("rta", figure(|it| &it.pipe.figures.taken));
        out.count("rtaf", figure(|it| &it.pipe.figures.none_to_take));
        out.count("rtf", figure(|it| &it.pipe.figures.freed));
        out.work_of("least-ver", self.least(|it| get(&it.pipe.figures.replaced)), LEAST_REPLACED);
    }

    /// Sections in other places than readers' threads; where there can be any, there have to be some.
    fn stat_places(&self, out: &mut Stat) {
        for place in Place::ALL {
            let can = |flavour: &Flavour| {
                let readers = &flavour.ops.readers;
                if place == Place::Nmi { readers.in_nmis } else { readers.in_interrupts }
            };
            if self.setup.interrupts && self.flavours.iter().any(can) {
                out.work(place.name(), self.at(place));
            } else {
                out.count(place.name(), self.at(place));
            }
        }
        if self.flavours.iter().any(|flavour| flavour.ops.down.is_some()) {
            out.work("handed", self.total(|flavour| flavour.seen_handed.sections()));
        }
    }

    fn stat_histograms(&self, out: &mut Stat) {
        let over_flavours = |of: fn(&Flavour) -> [u64; STAGES + 1]| {
            let mut all = [0; STAGES + 1];
            for flavour in &self.flavours {
                all.iter_mut().zip(of(flavour)).for_each(|(all, count)| *all += count);
            }
            all
        };
        out.histogram("Reader Pipe", &over_flavours(Flavour::ages));
        out.histogram("Reader Batch", &over_flavours(Flavour::batches));
        out.histogram("Free-Block Circulation", &over_flavours(|it| sum([&it.pipe.figures.circulation].into_iter())));
        let mut flood: Vec<u64> = Vec::with_capacity(STEPS);
        flood.extend(self.progress.histogram.iter().map(get));
        let last = flood.iter().rposition(|&count| count != 0);
        if let Some(last) = last {
            out.histogram("Flood", &flood[..=last]);
        }
    }
}
