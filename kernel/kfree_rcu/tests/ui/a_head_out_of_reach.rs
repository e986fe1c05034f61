//! A head is a head, and lies in the first 4096 bytes of its object: from further behind the start could not be found (S1-2).

use grange_kfree_rcu::{RcuPtr, has_rcu_ptr};

struct Far {
    page: [u64; 512],
    rcu: RcuPtr,
}

has_rcu_ptr!(Far, rcu);

struct Near {
    most_of_a_page: [u64; 511],
    rcu: RcuPtr,
}

has_rcu_ptr!(Near, rcu);

struct Number {
    rcu: u64,
}

has_rcu_ptr!(Number, rcu);

fn main() {}
