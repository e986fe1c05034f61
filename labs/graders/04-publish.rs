//! Grades lab 4: loom runs two threads in every order, and lets every load see every value that the orderings allow.
//!
//! Readers of pairs are threads of their own: with the reader in a model's first thread loom leaves out orders, and let a
//! write that ends with a Relaxed store pass.
#![cfg(test)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::answer::{Mailbox, Pair};

#[test]
fn a_letter_that_has_come_can_be_read() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new());
        let sender = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.send(7))
        };
        let letter = mailbox.receive();
        assert!(matches!(letter, None | Some(7)), "found {letter:?} in the mailbox, where 7 was sent");
        sender.join().unwrap();
        assert_eq!(mailbox.receive(), Some(7), "all is over");
    });
}

#[test]
fn a_pair_is_never_torn() {
    loom::model(|| {
        let pair = Arc::new(Pair::new());
        let reader = {
            let pair = pair.clone();
            thread::spawn(move || {
                if let Some([a, b]) = pair.read() {
                    assert_eq!(a, b, "two words of different writes");
                }
            })
        };
        pair.write([1, 1]);
        pair.write([2, 2]);
        reader.join().unwrap();
    });
}

#[test]
fn a_pair_can_be_read_when_no_writer_is_there() {
    loom::model(|| {
        let pair = Arc::new(Pair::new());
        assert_eq!(pair.read(), Some([0, 0]), "nobody has written");
        for at in 1..=3 {
            pair.write([at, at + 10]);
            assert_eq!(pair.read(), Some([at, at + 10]), "the last that was written, and nobody is writing");
        }
        let writer = {
            let pair = pair.clone();
            thread::spawn(move || pair.write([4, 14]))
        };
        writer.join().unwrap();
        assert_eq!(pair.read(), Some([4, 14]), "the writer has gone");
    });
}

#[test]
fn a_pair_is_as_new_as_what_its_reader_was_told() {
    loom::model(|| {
        let (pair, told) = (Arc::new(Pair::new()), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (pair, told) = (pair.clone(), told.clone());
            thread::spawn(move || {
                pair.write([1, 1]);
                told.store(true, Ordering::Release);
            })
        };
        if told.load(Ordering::Acquire) {
            assert_eq!(pair.read(), Some([1, 1]), "the reader was told that the pair is written");
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_read_that_comes_between_two_words_is_refused() {
    // The writer can be stopped anywhere: somewhere between its words a read has to fail, or be of before.
    loom::model(|| {
        let pair = Arc::new(Pair::new());
        pair.write([1, 1]);
        let reader = {
            let pair = pair.clone();
            thread::spawn(move || {
                let read = pair.read();
                let is_whole = matches!(read, None | Some([1, 1] | [2, 3]));
                assert!(is_whole, "read {read:?}, where [1, 1] and [2, 3] were written");
            })
        };
        pair.write([2, 3]);
        reader.join().unwrap();
    });
}
