//! `cargo xtask doctor`: one line for each thing the commands need, with the command that gets it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli::DoctorArgs;
use crate::exit::Exit;
use crate::process::output_of;
use crate::toolchain::{Step, core, emulator, find_program, install};
use crate::workspace::Workspace;

/// One line of the report.
struct Need {
    name: &'static str,
    /// What was found, or what is missing.
    found: Result<String, String>,
    /// What gets it.
    steps: Vec<Step>,
    /// Whether commands work without it.
    optional: bool,
}

impl Need {
    fn new(name: &'static str, found: Result<String, String>, steps: &[Step]) -> Need {
        Need { name, found, steps: steps.to_vec(), optional: false }
    }

    fn optional(mut self) -> Need {
        self.optional = true;
        self
    }

    fn word(&self) -> &'static str {
        match (&self.found, self.optional) {
            (Ok(_), _) => "ok",
            (Err(_), true) => "absent",
            (Err(_), false) => "missing",
        }
    }

    fn fix(&self) -> String {
        self.steps.iter().map(|step| step.line(!super::toolchain::is_root())).collect::<Vec<_>>().join(" && ")
    }
}

/// Runs the command.
///
/// # Errors
/// `Host` when `--fix` could not install something.
pub fn doctor(workspace: &Workspace, args: &DoctorArgs) -> anyhow::Result<Exit> {
    let mut needs = needs(workspace, &args.qemu);
    if args.fix {
        for need in needs.iter().filter(|need| need.found.is_err() && !need.optional && !need.steps.is_empty()) {
            install(workspace, need.name, &need.steps)?;
        }
        needs = self::needs(workspace, &args.qemu);
    }
    let missing = needs.iter().filter(|need| need.found.is_err() && !need.optional).count();
    if args.json {
        let list: Vec<Value> = needs
            .iter()
            .map(|need| {
                let (Ok(what) | Err(what)) = &need.found;
                json!({ "need": need.name, "state": need.word(), "what": what, "fix": need.fix() })
            })
            .collect();
        println!("{:#}", json!({ "v": 1, "missing": missing, "needs": list }));
    } else {
        for need in &needs {
            let (Ok(what) | Err(what)) = &need.found;
            let fix = if need.found.is_err() && !need.steps.is_empty() {
                format!("; type: {}", need.fix())
            } else {
                String::new()
            };
            println!("{:<7} {}: {what}{fix}", need.word(), need.name);
        }
    }
    Ok(if missing == 0 { Exit::Passed } else { Exit::Host })
}

fn needs(workspace: &Workspace, qemu: &Path) -> Vec<Need> {
    let program = |name: &str, arg: &str| output_of(Command::new(name).arg(arg).current_dir(&workspace.root));
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let tool = |name: &'static str, arg: &str, steps: &[Step]| {
        Need::new(name, program(name, arg).map(first_line).ok_or_else(|| format!("no {name} that runs")), steps)
    };
    let found = find_program(qemu);
    let component = |name: &str| [Step::user(&format!("rustup component add {name}"))];
    vec![
        tool("rustc", "--version", &[]),
        tool("cargo", "--version", &[]),
        Need::new(
            "linker",
            find_program(Path::new("cc")).map(shown).ok_or("no cc: the host's own tools do not link".into()),
            &[Step::root("apt-get update"), Step::root("apt-get install -y --no-install-recommends gcc libc6-dev")],
        ),
        bare_core(workspace),
        tool("cargo-fmt", "--version", &component("rustfmt")),
        tool("cargo-clippy", "--version", &component("clippy")),
        Need::new("qemu", version(found.as_deref()), &emulator::steps()),
        Need::new("firmware", firmware(found.as_deref()), &emulator::steps()),
        Need::new("qemu features", features(found.as_deref()), &emulator::steps()),
        Need::new(
            "kvm",
            emulator::kvm_lacks()
                .map_or_else(|| Ok("real".into()), |why| Err(format!("not real here: {why}; the emulator is used"))),
            &[],
        )
        .optional(),
        Need::new(
            "cargo-nextest",
            find_program(Path::new("cargo-nextest")).map(shown).ok_or("cargo test is used".into()),
            &[Step::user("cargo install --locked cargo-nextest")],
        )
        .optional(),
        Need::new(
            "gdb",
            find_program(Path::new("gdb")).map(shown).ok_or("only `cargo xtask debug` needs it".into()),
            &crate::debug::steps(),
        )
        .optional(),
        Need::new("host", Ok(host()), &[]),
    ]
}

fn shown(path: PathBuf) -> String {
    path.display().to_string()
}

fn bare_core(workspace: &Workspace) -> Need {
    let found = if core::target_installed(workspace) {
        Ok("installed with the toolchain".to_owned())
    } else if core::source(workspace).is_some() {
        Ok("not installed, but its source is: --core build-std".to_owned())
    } else {
        Err("neither the target x86_64-unknown-none nor its source".to_owned())
    };
    Need::new("bare-metal core", found, &core::steps())
}

fn version(program: Option<&Path>) -> Result<String, String> {
    let program = program.ok_or("no qemu-system-x86_64")?;
    let version = emulator::version(program).ok_or("does not say its version")?;
    Ok(format!("{version} ({})", program.display()))
}

fn firmware(program: Option<&Path>) -> Result<String, String> {
    match program {
        None => Err("comes with QEMU".into()),
        Some(program) if emulator::lacks_firmware(program) => Err("no bios-256k.bin".into()),
        Some(_) => Ok("SeaBIOS".into()),
    }
}

/// Asks QEMU itself for what the commands use.
fn features(program: Option<&Path>) -> Result<String, String> {
    let program = program.ok_or("comes with QEMU")?;
    let help = |args: &[&str]| output_of(Command::new(program).args(args)).unwrap_or_default();
    let wanted = [
        ("q35", help(&["-machine", "help"]).contains("q35")),
        ("isa-debug-exit", help(&["-device", "help"]).contains("isa-debug-exit")),
        ("tcg", help(&["-accel", "help"]).contains("tcg")),
        ("icount", help(&["--help"]).contains("-icount")),
        ("numa", help(&["--help"]).contains("-numa")),
    ];
    let lacking: Vec<&str> = wanted.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        Ok(wanted.map(|(name, _)| name).join(", "))
    } else {
        Err(format!("lacks {}", lacking.join(", ")))
    }
}

/// Cores, and how fast one of them is: a number to compare machines by, not a benchmark.
fn host() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let started = Instant::now();
    let mut x = 1_u64;
    let rounds = 20_000_000_u32;
    for _ in 0..rounds {
        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    let speed = f64::from(rounds) / started.elapsed().as_secs_f64() / 1e6;
    format!("{cores} cores, speed index {speed:.0} (million dependent multiplications a second)")
}
