//! From a shape to the QEMU line.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifact::Artifacts;
use crate::cli::{Accel, Distance, MachineArgs, Thread};
use crate::exit::usage;
use crate::post_mortem::MAX_MEMORY;
use crate::process::quoted;
use crate::shape::{Defaults, Shape};
use crate::toolchain::emulator;
use crate::trace;
use crate::workspace::Workspace;

/// Nanoseconds of an instruction in a deterministic run, as a power of two: 16. Of 3 to 8 the one at which a guest's second
/// takes about a second of the host's; with slower guests tests run into their time limits, and with faster ones they wait.
pub const DEFAULT_SHIFT: u8 = 4;

/// How the emulator is to run the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Hardware virtualisation.
    Kvm,
    /// TCG with one host thread a CPU.
    Multi,
    /// TCG with one host thread for all CPUs.
    Single,
    /// One host thread, and instructions counted: repeatable bit for bit.
    Deterministic {
        /// An instruction takes 2^shift nanoseconds of the guest's time.
        shift: u8,
    },
    /// The same with a clock that goes on by a nanosecond an instruction, for figures.
    Counted,
}

impl Engine {
    /// What the options mean for so many CPUs on this host. `shift` is that of a deterministic run.
    ///
    /// # Errors
    /// `Usage` for options that exclude each other, and for a KVM that is not there.
    pub fn choose(accel: Accel, thread: Thread, shift: Option<u8>, cpus: u32) -> anyhow::Result<Engine> {
        if let Some(shift) = shift {
            return match (accel, thread) {
                (Accel::Kvm, _) => Err(usage("--deterministic with --accel kvm: only the emulator is repeatable")),
                (_, Thread::Multi) => Err(usage("--deterministic with --thread multi: it needs one host thread")),
                _ => Ok(Engine::Deterministic { shift }),
            };
        }
        match accel {
            Accel::Kvm => {
                return match emulator::kvm_lacks() {
                    Some(why) => Err(usage(format!("--accel kvm: {why}; auto and tcg are allowed"))),
                    None => Ok(Engine::Kvm),
                };
            }
            Accel::Auto if thread == Thread::Auto && emulator::kvm_lacks().is_none() => return Ok(Engine::Kvm),
            _ => {}
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        Ok(match thread {
            Thread::Multi => Engine::Multi,
            Thread::Single => Engine::Single,
            Thread::Auto if cpus <= cores => Engine::Multi,
            Thread::Auto => Engine::Single,
        })
    }

    /// One word for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Engine::Kvm => "kvm",
            Engine::Multi => "tcg,thread=multi",
            Engine::Single => "tcg,thread=single",
            Engine::Deterministic { .. } => "tcg,deterministic",
            Engine::Counted => "tcg,counted",
        }
    }

    /// The options that give this engine again.
    #[must_use]
    pub fn options(self) -> String {
        match self {
            Engine::Kvm => "--accel kvm".to_owned(),
            Engine::Multi => "--thread multi".to_owned(),
            Engine::Single => "--thread single".to_owned(),
            Engine::Deterministic { shift: DEFAULT_SHIFT } => "--deterministic".to_owned(),
            Engine::Deterministic { shift } => format!("--deterministic --shift {shift}"),
            Engine::Counted => "--icount".to_owned(),
        }
    }

    /// Whether two runs have to be alike.
    #[must_use]
    pub fn is_deterministic(self) -> bool {
        matches!(self, Engine::Deterministic { .. })
    }
}

/// A machine as QEMU is asked for it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The QEMU program.
    pub program: PathBuf,
    /// CPUs, nodes, memory.
    pub shape: Shape,
    /// How it is run.
    pub engine: Engine,
    /// The user's part of the kernel command line.
    pub append: String,
    /// The user's part of the QEMU line.
    pub extra: Vec<String>,
    /// Whether it leaves a core when it dies under watch.
    pub cores: bool,
    /// The trace points that are on from boot, as globs.
    pub trace: Option<String>,
}

impl Machine {
    /// The machine the arguments describe, with a QEMU that is there.
    ///
    /// # Errors
    /// `Usage` for a bad shape, `Host` when there is no QEMU.
    pub fn from_args(
        workspace: &Workspace,
        args: &MachineArgs,
        extra: &[String],
        defaults: Defaults,
    ) -> anyhow::Result<Machine> {
        let shape = Shape::from_args(args, defaults)?;
        let shift = args.deterministic.then(|| args.shift.unwrap_or(DEFAULT_SHIFT));
        let engine = Engine::choose(args.accel, args.thread, shift, shape.cpus())?;
        if engine.is_deterministic() {
            refuse_contradictions(&args.append, extra)?;
        }
        crate::kernel_args::KernelLine::new(&args.append).finish()?;
        let program = emulator::ensure(workspace, &args.qemu)?;
        Ok(Machine {
            program,
            shape,
            engine,
            append: args.append.clone(),
            extra: extra.to_vec(),
            cores: !args.no_core,
            trace: None,
        })
    }

    /// What a person has to add to a line for this machine: shape, engine, and the user's own words.
    #[must_use]
    pub fn options(&self) -> String {
        let mut line = format!("{} {}", self.shape.options(), self.engine.options());
        if !self.append.trim().is_empty() {
            line.push_str(&format!(" --append {}", quoted(self.append.trim().as_ref())));
        }
        line
    }

    /// The words the kernel needs because of the engine, where no CPU may halt in deterministic runs, and for tracing.
    pub fn kernel_words(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let idle = self.engine.is_deterministic().then_some(("idle", "poll"));
        idle.into_iter().chain(self.trace.iter().map(|globs| ("grange.trace", globs.as_str())))
    }

    /// Has the trace points that fit switched on.
    ///
    /// # Errors
    /// `Usage` for a machine with more memory than can be looked through.
    pub fn traced(self, globs: Option<&String>) -> anyhow::Result<Machine> {
        if globs.is_some() && self.shape.memory() > MAX_MEMORY {
            return Err(usage(format!("--trace and more than {} GiB of memory", MAX_MEMORY >> 30)));
        }
        Ok(Machine { trace: globs.cloned(), ..self })
    }

    /// The QEMU line.
    #[must_use]
    pub fn command(&self, artifacts: &Artifacts, kernel_line: &str, seed: u64, wiring: &Wiring) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-nodefaults", "-machine", "q35", "-cpu", "max", "-display", "none"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pvpanic"]);
        // Somebody who listens may have a machine that dies held, to look at it; else it runs on to its own end.
        let held = self.cores && wiring.qmp.is_some();
        command.args(["-action", if held { "panic=pause,shutdown=pause" } else { "panic=none" }]);
        match self.engine {
            Engine::Kvm => command.args(["-accel", "kvm"]),
            Engine::Multi => command.args(["-accel", "tcg,thread=multi"]),
            Engine::Single => command.args(["-accel", "tcg,thread=single"]),
            Engine::Counted => {
                command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
                command.args(["-rtc", "base=2026-01-01,clock=vm"])
            }
            Engine::Deterministic { shift } => {
                command.args(["-accel", "tcg,thread=single", "-icount", &format!("shift={shift},sleep=off")]);
                command.args(["-rtc", "base=2026-01-01,clock=vm", "-seed", &(seed as u32).to_string()])
            }
        };
        self.add_shape(&mut command, wiring.memory.as_deref());
        wiring.add_to(&mut command);
        command.arg("-kernel").arg(&artifacts.loader).arg("-initrd").arg(&artifacts.kernel);
        command.args(["-append", kernel_line]).args(&self.extra);
        command
    }

    fn add_shape(&self, command: &mut Command, files: Option<&Path>) {
        let shape = &self.shape;
        let (sockets, cores) = shape.sockets_and_cores();
        command.arg("-m").arg(format!("{}M", shape.memory() >> 20));
        command.arg("-smp").arg(format!("{},sockets={sockets},cores={cores},threads=1", shape.cpus()));
        // Without -numa there is no SRAT: one node is what the kernel then makes of it.
        let memory = |node: usize, size: u64| match files {
            None => format!("memory-backend-ram,id=m{node},size={size}M"),
            Some(folder) => {
                let path = escaped(&folder.join(trace::memory::file_name(node)));
                format!("memory-backend-file,id=m{node},size={size}M,share=on,mem-path={}", path.to_string_lossy())
            }
        };
        if shape.nodes() == 1 {
            if files.is_some() {
                command.arg("-object").arg(memory(0, shape.memory() >> 20)).args(["-machine", "memory-backend=m0"]);
            }
            return;
        }
        let mut first_cpu = 0;
        for node in 0..shape.nodes() {
            let (cpus, size) = (shape.node_cpus[node as usize], shape.node_memory[node as usize] >> 20);
            let mut numa = format!("node,nodeid={node}");
            if size > 0 {
                command.arg("-object").arg(memory(node as usize, size));
                let _ = write!(numa, ",memdev=m{node}");
            }
            match cpus {
                0 => {}
                1 => _ = write!(numa, ",cpus={first_cpu}"),
                _ => _ = write!(numa, ",cpus={first_cpu}-{}", first_cpu + cpus - 1),
            }
            first_cpu += cpus;
            command.args(["-numa", &numa]);
        }
        if shape.distance != Distance::None {
            for a in 0..shape.nodes() {
                for b in a + 1..shape.nodes() {
                    command.arg("-numa").arg(format!("dist,src={a},dst={b},val={}", shape.distance_between(a, b)));
                }
            }
        }
    }
}

/// What in the user's own words would make a deterministic run another one each time.
fn refuse_contradictions(append: &str, extra: &[String]) -> anyhow::Result<()> {
    let word = append.split_whitespace().find(|word| word.starts_with("idle=") || word.starts_with("grange.seed="));
    if let Some(word) = word {
        return Err(usage(format!("--deterministic with --append {word}: it sets idle= and grange.seed= itself")));
    }
    let ours = ["-accel", "-icount", "-rtc", "-seed", "-smp"];
    if let Some(option) = extra.iter().find(|option| ours.contains(&option.as_str())) {
        return Err(usage(format!("--deterministic with {option} for QEMU: it sets {} itself", ours.join(", "))));
    }
    Ok(())
}

/// Where the two serial lines and the control socket go.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// COM1 and QEMU's monitor on this terminal (Ctrl-A X leaves), else only into the log.
    pub terminal: bool,
    /// What COM1 said, raw.
    pub console: Option<PathBuf>,
    /// What COM2 said, raw.
    pub frames: PathBuf,
    /// Socket of the machine protocol.
    pub qmp: Option<PathBuf>,
    /// Whether a guest that resets is started again.
    pub reboots: bool,
    /// Folder of files that hold the machine's memory, so that it can be read from outside.
    pub memory: Option<PathBuf>,
}

impl Wiring {
    fn add_to(&self, command: &mut Command) {
        let console = self.console.as_deref().map(escaped);
        if self.terminal {
            let mut chardev = OsString::from("stdio,id=com1,mux=on,signal=off");
            if let Some(console) = console {
                chardev.push(",logfile=");
                chardev.push(console);
            }
            command.arg("-chardev").arg(chardev).args(["-serial", "chardev:com1", "-mon", "chardev=com1"]);
        } else {
            let mut chardev = OsString::from("file,id=com1,path=");
            chardev.push(console.unwrap_or_else(|| "/dev/null".into()));
            command.arg("-chardev").arg(chardev).args(["-serial", "chardev:com1", "-monitor", "none"]);
        }
        let mut chardev = OsString::from("file,id=com2,path=");
        chardev.push(escaped(&self.frames));
        command.arg("-chardev").arg(chardev).args(["-serial", "chardev:com2"]);
        if let Some(socket) = &self.qmp {
            let mut qmp = OsString::from("unix:");
            qmp.push(escaped(socket));
            qmp.push(",server=on,wait=off");
            command.arg("-qmp").arg(qmp);
        }
        if !self.reboots {
            command.arg("-no-reboot");
        }
    }
}

/// A path inside a QEMU option list: commas are doubled.
fn escaped(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

/// The command as a script that anyone can run, one option a line.
#[must_use]
pub fn script(command: &Command) -> String {
    let mut text = String::from("#!/bin/sh\nexec ");
    text.push_str(&quoted(command.get_program()));
    for word in command.get_args() {
        let option = word.to_string_lossy().starts_with('-');
        text.push_str(if option { " \\\n  " } else { " " });
        text.push_str(&quoted(word));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::shell_line;

    fn machine(shape: Shape, engine: Engine) -> Machine {
        Machine {
            program: "qemu".into(),
            shape,
            engine,
            append: String::new(),
            extra: vec!["-d".into(), "int".into()],
            cores: true,
            trace: None,
        }
    }

    fn artifacts() -> Artifacts {
        Artifacts { loader: "/t/boot".into(), kernel: "/t/grange".into(), profile: "release" }
    }

    fn wiring(terminal: bool) -> Wiring {
        Wiring {
            terminal,
            console: Some("/r/a,b/console.log".into()),
            frames: "/r/com2.log".into(),
            qmp: Some("/tmp/q".into()),
            reboots: false,
            memory: None,
        }
    }

    #[test]
    fn nodes_get_their_memory_their_cpus_and_all_distances() {
        let line = shell_line(&machine(Shape::even(7, 3).unwrap(), Engine::Single).command(
            &artifacts(),
            "a=1 b=2",
            0,
            &wiring(false),
        ));
        for part in [
            "-accel tcg,thread=single",
            "-m 512M -smp 7,sockets=7,cores=1,threads=1",
            "-object memory-backend-ram,id=m0,size=171M -numa node,nodeid=0,memdev=m0,cpus=0-2",
            "-numa node,nodeid=2,memdev=m2,cpus=5-6",
            "-numa dist,src=0,dst=1,val=20 -numa dist,src=0,dst=2,val=20 -numa dist,src=1,dst=2,val=20",
            "-append 'a=1 b=2' -d int",
            "-no-reboot",
        ] {
            assert!(line.contains(part), "{line}\nlacks {part}");
        }
    }

    #[test]
    fn a_node_may_lack_memory_or_cpus_and_one_node_needs_no_numa() {
        let shape =
            Shape { node_cpus: vec![1, 0, 2], node_memory: vec![64 << 20, 64 << 20, 0], distance: Distance::None };
        let line = shell_line(&machine(shape, Engine::Single).command(&artifacts(), "", 0, &wiring(false)));
        assert!(line.contains("-numa node,nodeid=0,memdev=m0,cpus=0 "), "{line}");
        assert!(line.contains("-numa node,nodeid=1,memdev=m1 "), "{line}");
        assert!(line.contains("-numa node,nodeid=2,cpus=1-2 "), "{line}");
        assert!(!line.contains("dist,"), "{line}");
        let one = shell_line(&machine(Shape::even(2, 1).unwrap(), Engine::Multi).command(
            &artifacts(),
            "",
            0,
            &wiring(false),
        ));
        assert!(!one.contains("-numa"), "{one}");
    }

    #[test]
    fn a_deterministic_machine_counts_instructions_and_takes_its_clock_and_its_numbers_from_the_guest() {
        let engine = Engine::Deterministic { shift: 6 };
        let machine = machine(Shape::even(4, 2).unwrap(), engine);
        let line = shell_line(&machine.command(&artifacts(), "", 7, &wiring(false)));
        let part = "-accel tcg,thread=single -icount shift=6,sleep=off -rtc base=2026-01-01,clock=vm -seed 7 ";
        assert!(line.contains(part), "{line}");
        assert_eq!(machine.kernel_words().collect::<Vec<_>>(), [("idle", "poll")]);
    }

    #[test]
    fn words_that_would_undo_a_deterministic_run_are_refused() {
        let refused = |append: &str, extra: &[&str]| {
            let extra: Vec<String> = extra.iter().map(|&word| word.to_owned()).collect();
            refuse_contradictions(append, &extra).map_err(|error| error.to_string())
        };
        assert_eq!(refused("grange.hz=1000", &["-d", "int"]), Ok(()));
        assert!(refused("a=1 idle=halt", &[]).unwrap_err().contains("idle=halt"));
        assert!(refused("grange.seed=3", &[]).unwrap_err().contains("grange.seed=3"));
        assert!(refused("", &["-icount", "shift=auto"]).unwrap_err().contains("-icount for QEMU"));
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        let line =
            shell_line(&machine(Shape::even(1, 1).unwrap(), Engine::Multi).command(&artifacts(), "", 0, &wiring(true)));
        assert!(line.contains("stdio,id=com1,mux=on,signal=off,logfile=/r/a,,b/console.log"), "{line}");
    }

    #[test]
    fn a_machine_that_dies_is_held_only_where_somebody_listens_and_wants_a_core() {
        let mut machine = machine(Shape::even(1, 1).unwrap(), Engine::Multi);
        let line = |machine: &Machine, wiring: &Wiring| shell_line(&machine.command(&artifacts(), "", 0, wiring));
        assert!(line(&machine, &wiring(false)).contains("-action panic=pause,shutdown=pause"));
        let alone = Wiring { qmp: None, ..wiring(false) };
        assert!(line(&machine, &alone).contains("-device pvpanic -action panic=none"));
        machine.cores = false;
        assert!(line(&machine, &wiring(false)).contains("-action panic=none"));
    }

    #[test]
    fn the_engine_follows_the_options_and_the_hosts_cores() {
        let choose = |thread, cpus| Engine::choose(Accel::Tcg, thread, None, cpus).unwrap();
        assert_eq!(choose(Thread::Auto, 1), Engine::Multi);
        assert_eq!(choose(Thread::Auto, 255), Engine::Single);
        assert_eq!(choose(Thread::Multi, 255), Engine::Multi);
        let deterministic = Engine::Deterministic { shift: 5 };
        assert_eq!(Engine::choose(Accel::Auto, Thread::Auto, Some(5), 4).unwrap(), deterministic);
        assert_eq!(deterministic.options(), "--deterministic --shift 5");
        assert!(Engine::choose(Accel::Auto, Thread::Multi, Some(4), 4).is_err());
        assert!(Engine::choose(Accel::Kvm, Thread::Auto, Some(4), 4).is_err());
    }

    #[test]
    fn the_script_is_one_option_a_line_and_quotes_what_a_shell_would_split() {
        let mut command = Command::new("qemu");
        command.args(["-m", "512M", "-append", "a b"]);
        assert_eq!(script(&command), "#!/bin/sh\nexec qemu \\\n  -m 512M \\\n  -append 'a b'\n");
    }
}
