//! An NMI at each instruction of an exchange of sheaves: what it hit, and where its own object was from.

use crate::symbols::Symbols;
use crate::trace::Trace;

use super::lanes::{Bar, Lanes};
use super::nothing;

/// The entry code of exceptions: the frame behind it was interrupted.
const ENTRY: &str = "grange_trap";

/// The figure.
///
/// # Errors
/// `Incomplete` if the trace has no NMI of the test.
pub fn lanes(trace: &Trace, symbols: &Symbols) -> anyhow::Result<Lanes> {
    let mut figure = Lanes {
        axis: "instruction",
        colors: vec![
            "what the NMI hits",
            "its object is from a sheaf",
            "past the sheaves: from a slab",
            "it gets nothing",
        ],
        lanes: vec!["the NMI".to_owned()],
        ..Lanes::default()
    };
    let mut hit: Vec<(String, f64, f64)> = Vec::new();
    let [mut sheaf, mut slab] = [0; 2];
    for event in trace.events.iter().filter(|event| trace.name(event) == "figures.nmi") {
        let Some(boundary) = trace.value(event, "boundary") else { continue };
        let at = boundary as f64;
        let color = match (trace.value(event, "got"), trace.value(event, "sheaf")) {
            (Some(0), _) => 3,
            (_, Some(0)) => 2,
            _ => 1,
        };
        sheaf += u32::from(color == 1);
        slab += u32::from(color == 2);
        figure.bars.push(Bar { lane: 0, span: (at, at + 1.0), color, text: String::new() });
        let function = interrupted(trace, symbols, boundary).unwrap_or_else(|| "?".to_owned());
        match hit.last_mut() {
            Some((last, _, end)) if *last == function => *end = at + 1.0,
            _ => hit.push((function, at, at + 1.0)),
        }
    }
    if hit.is_empty() {
        return Err(nothing("NMI of the test"));
    }
    let names: Vec<String> = hit.iter().map(|(name, ..)| name.clone()).fold(Vec::new(), |mut names, name| {
        if !names.contains(&name) {
            names.push(name);
        }
        names
    });
    for (name, from, to) in hit {
        let lane = 1 + names.iter().position(|known| *known == name).unwrap_or(0);
        figure.bars.push(Bar { lane, span: (from, to), color: 0, text: String::new() });
    }
    figure.lanes.extend(names);
    figure.title = format!(
        "An NMI allocates at each of {} instructions of a swap: {sheaf} times from a sheaf, {slab} times from a slab",
        sheaf + slab
    );
    Ok(figure)
}

/// The function that the NMI at a boundary has interrupted.
fn interrupted(trace: &Trace, symbols: &Symbols, boundary: u64) -> Option<String> {
    let frames = trace.events.iter().filter(|event| trace.name(event) == "figures.frame");
    let frames = frames.filter(|event| trace.value(event, "boundary") == Some(boundary));
    let functions = frames.filter_map(|event| symbols.frames(trace.value(event, "address")?).pop());
    let mut behind = functions.skip_while(|function| !function.starts_with(ENTRY)).skip(1);
    behind.next().map(|frame| short(&frame))
}

/// `exchange.rs: alloc_slow` for `alloc_slow at kernel/slab/src/exchange.rs:42`, with or without the function's path and types.
fn short(frame: &str) -> String {
    let (path, place) = frame.split_once(" at ").unwrap_or((frame, ""));
    // Of what is not inside of angle brackets the part behind the last colons.
    let mut depth = 0_usize;
    let outside = path.chars().filter(|letter| {
        depth += usize::from(*letter == '<');
        let keep = depth == 0;
        depth = depth.saturating_sub(usize::from(*letter == '>'));
        keep
    });
    let outside: String = outside.collect();
    let function = outside.rsplit("::").next().unwrap_or_default();
    match place.rsplit('/').next().and_then(|file| file.split_once(':')) {
        Some((file, _)) => format!("{file}: {function}"),
        None => function.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_named_by_file_and_function() {
        for (frame, name) in [
            ("alloc_slow at kernel/slab/src/exchange.rs:42", "exchange.rs: alloc_slow"),
            ("call_once<f::{closure_env#0}, ()> at library/core/src/ops/function.rs:250", "function.rs: call_once"),
            ("grange_slab::cpu::<impl grange_slab::cache::RawCache>::alloc", "alloc"),
            ("grange_trap_rax_saved", "grange_trap_rax_saved"),
        ] {
            assert_eq!(short(frame), name);
        }
    }
}
