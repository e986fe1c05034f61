//! The parameters `torture.*`. Those of disturbers have Linux's names where Linux has them, and are 0 for "not at all".

use sync::param;

use super::Request;
use super::kind::are_known;

param! {
    /// Which kinds of torture: globs, separated by commas; all if there is none.
    pub static KINDS: str = "torture.kinds", default "", if are_known, form "kinds of torture, which `torture --list` names";
}
param! {
    /// How long to torture, in guest time.
    pub static DURATION_MS: u32 = "torture.duration_ms", default 60_000, in 1..=86_400_000, unit "ms";
}
param! {
    /// Milliseconds for which none of a kind's threads may end at the end, and which its last checks may take; a quarter of it
    /// is how long a pipe of RCU may stand.
    pub static PATIENCE: u32 = "torture.patience", default 60_000, in 1..=86_400_000, unit "ms";
}
param! {
    /// Seconds between two lines of statistics.
    pub static STAT_INTERVAL: u32 = "torture.stat_interval", default 15, in 1..=3_600, unit "s";
}
param! {
    /// Milliseconds between two CPUs that go or come; 0 for none.
    pub static ONOFF_INTERVAL: u32 = "torture.onoff_interval", default 0, in 0..=3_600_000, unit "ms";
}
param! {
    /// Seconds before the first of them.
    pub static ONOFF_HOLDOFF: u32 = "torture.onoff_holdoff", default 0, in 0..=3_600, unit "s";
}
param! {
    /// Milliseconds after which threads are moved off another CPU; 0 for never.
    pub static SHUFFLE_INTERVAL: u32 = "torture.shuffle_interval", default 3_000, in 0..=3_600_000, unit "ms";
}
param! {
    /// Milliseconds of a pause, and from one to the next; 0 for none.
    pub static STUTTER: u32 = "torture.stutter", default 5_000, in 0..=3_600_000, unit "ms";
}
param! {
    /// Microseconds between two NMIs to random CPUs; 0 for none.
    pub static NMI_INTERVAL: u32 = "torture.nmi_interval", default 0, in 0..=60_000_000, unit "us";
}
param! {
    /// Memory that is held and given back again and again, in percent of what is free at first; 0 for none.
    pub static PRESSURE: u32 = "torture.pressure", default 0, in 0..=95, unit "%";
}
param! {
    /// Which allocations of objects fail, and of which caches; Linux's failslab, for as long as the torture goes on.
    pub static FAIL_SLAB: str = "torture.failslab", default "", if |text| slab::fail::parse(text).is_some(), form slab::fail::FORM;
}

/// What the command line asks for.
pub fn request(seed: u64) -> Request<'static> {
    Request { kinds: KINDS.get(), duration_ms: DURATION_MS.get(), seed }
}
