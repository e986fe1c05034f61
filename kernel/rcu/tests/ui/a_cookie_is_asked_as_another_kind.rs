//! Cookies of different kinds are different things: their numbers count different grace periods.

use grange_rcu::{Cookie, FullCookie, get_state, get_state_full, poll_any};

fn taken_for_the_other(short: Cookie) {
    let _: FullCookie = short;
    let _: bool = short == get_state_full();
}

fn asked_together() {
    poll_any(&[get_state(), get_state_full()]);
}

fn made_of_a_number() -> Cookie {
    Cookie(17)
}

fn main() {}
