//! Only the holder of a list's lock has the cursor that changes it, and there is one cursor at a time.

use grange_rcu::{ListNode, RcuBox, RcuList, read_lock};
use sync::ATOMIC;

fn without(list: &RcuList<u64>) {
    let first = list.cursor().remove();
    list.push_front(RcuBox::new(ListNode::new(1)));
}

fn as_if_alone(list: &RcuList<u64>) {
    list.get_mut().cursor().remove();
}

fn by_what_a_reader_found(list: &RcuList<u64>) {
    let guard = read_lock(ATOMIC);
    list.iter(&guard).next().unwrap().remove();
}

fn after_unlock(list: &RcuList<u64>) {
    let mut updater = list.lock(ATOMIC);
    let mut cursor = updater.cursor();
    drop(updater);
    cursor.remove();
}

fn two_at_once(list: &RcuList<u64>) {
    let mut updater = list.lock(ATOMIC);
    let mut one = updater.cursor();
    let mut two = updater.cursor();
    one.remove();
    two.remove();
}

fn entry_kept_by_the_updater(list: &RcuList<u64>) -> u64 {
    let mut updater = list.lock(ATOMIC);
    let mut cursor = updater.cursor();
    let current = cursor.current().unwrap();
    cursor.remove();
    *current
}

fn main() {}
