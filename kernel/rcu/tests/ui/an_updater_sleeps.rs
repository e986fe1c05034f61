//! Who has a list's lock does not sleep, nor wait for its readers.

use grange_rcu::{RcuList, synchronize_rcu};
use sync::MaySleep;

fn thread(cx: &mut MaySleep, list: &RcuList<u64>) {
    let mut updater = list.lock(cx);
    let old = updater.cursor().remove().unwrap();
    old.synchronize(cx);
    synchronize_rcu(cx);
    drop(updater);
}

fn main() {}
