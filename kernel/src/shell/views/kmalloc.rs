//! Objects to play with: `kmalloc`, `kfree`, `ksize`, `kmem`.
//!
//! What the shell has allocated stands in a table, and nothing else can be freed or looked up: an address that was
//! mistyped is refused instead of corrupting the kernel.

use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;

use ::arch::{NodeId, cpu};
use ::mm::AllocFlags;
use ::sched::Mutex;
use ::sync::{MaySleep, lock_class};
use grange_kernel::table::{Table, Value};

use super::slab::number;
use crate::console;
use crate::shell::{Complaint, Session, command};

command!(kmalloc, "SIZE [node N] [zero]", "allocates SIZE bytes, from a node; prints where they are", kmalloc);
command!(kfree, "ADDR", "frees what the shell's kmalloc returned, or `all` of it", kfree);
command!(ksize, "ADDR", "bytes that may be used of what the shell's kmalloc returned", ksize);
command!(kmem, "[--json]", "what the shell's kmalloc returned and kfree has not freed", kmem);

/// Something that the shell holds.
struct Held {
    object: NonNull<u8>,
    asked: usize,
    node: Option<usize>,
}

// SAFETY: the object belongs to whoever has this, on whatever CPU.
unsafe impl Send for Held {}

/// All that the shell holds. Nests in nothing; the allocator's locks nest in it.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new(), lock_class!("kernel.kmem"));

/// The largest block that there can be.
const LARGEST: u64 = (::arch::PAGE_SIZE << ::mm::MAX_ORDER) as u64;

fn kmalloc(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let (mut size, mut node, mut flags) = (0, None, AllocFlags::NOWARN);
    let mut words = arguments.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "zero" => flags |= AllocFlags::ZERO,
            "node" => node = Some(online_node(words.next().unwrap_or_default())?),
            _ => size = number("SIZE", word, 0, LARGEST)? as usize,
        }
    }
    let object = ::slab::kmalloc_node(size, node, flags)
        .ok_or_else(|| Complaint::new(format_args!("there is no memory for {size} bytes")))?;
    let node = ::mm::page_of(object.as_ptr()).map(|page| page.node().index());
    HELD.lock(session.cx).push(Held { object, asked: size, node });
    console::print(&format!("{:#x}\n", object.addr()));
    Ok(())
}

fn online_node(typed: &str) -> Result<NodeId, Complaint> {
    let nodes = cpu::nodes_online();
    let node = typed.parse().ok().filter(|&node: &u32| nodes.checked_shr(node).is_some_and(|rest| rest & 1 != 0));
    node.map(|node| NodeId::new(node as usize)).ok_or_else(|| {
        let known: Vec<_> = (0..u64::BITS).filter(|bit| nodes >> bit & 1 != 0).map(|bit| format!("{bit}")).collect();
        Complaint::new(format_args!("`{typed}` is no node; allowed: {}", known.join(", ")))
    })
}

/// The address that was typed.
fn address(typed: &str) -> Result<usize, Complaint> {
    let hex = typed.strip_prefix("0x").and_then(|digits| usize::from_str_radix(digits, 16).ok());
    hex.ok_or_else(|| Complaint::new(format_args!("`{typed}` is no ADDR; allowed: what kmalloc printed, 0x…")))
}

/// Where in the table the typed address stands.
fn position(held: &[Held], typed: &str) -> Result<usize, Complaint> {
    let address = address(typed)?;
    held.iter().position(|held| held.object.addr().get() == address).ok_or_else(|| {
        Complaint::new(format_args!(
            "{typed} is nothing that this shell's kmalloc returned; `kmem` lists what it holds"
        ))
    })
}

fn kfree(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let mut held = HELD.lock(session.cx);
    let free = |held: Held| {
        // SAFETY: from kmalloc, and taken out of the table, so it is freed once; nobody else knows it.
        unsafe { ::slab::kfree(held.object) }
    };
    match arguments {
        ["all"] => held.drain(..).for_each(free),
        [typed] => {
            let at = position(&held, typed)?;
            free(held.remove(at));
        }
        _ => unreachable!("checked against the declaration"),
    }
    Ok(())
}

/// Bytes that may be used.
fn size_of(held: &Held) -> usize {
    // SAFETY: in the table, so it is allocated.
    unsafe { ::slab::ksize(held.object) }
}

fn ksize(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let [typed] = arguments else { unreachable!("checked against the declaration") };
    let held = HELD.lock(session.cx);
    let at = position(&held, typed)?;
    console::print(&format!("{}\n", size_of(&held[at])));
    Ok(())
}

fn kmem(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let table = table(session.cx);
    session.show(&table)
}

fn table(cx: &mut MaySleep) -> Table {
    let mut table = Table::new("kmem", &["address", "asked", "usable", "node"]);
    for held in HELD.lock(cx).iter() {
        table.row([
            Value::from(format!("{:#x}", held.object.addr())),
            held.asked.into(),
            size_of(held).into(),
            held.node.into(),
        ]);
    }
    table
}
