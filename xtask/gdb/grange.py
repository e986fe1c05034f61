"""gdb commands for Grange: gr-cpus, gr-tasks, gr-bt-all, gr-percpu, gr-rcu. `cargo xtask debug` loads them.

They read the kernel through the types of its own debug information. What a kernel lacks (a static, a field) is an error
that names it, and never a wrong figure. All of them work on a machine that is stopped and on a core file alike, and
change nothing in either.

Contexts: a vCPU is a thread of gdb; which CPU it is, is told by its GS base, as in kernel/arch/src/percpu.
Linux: scripts/gdb/linux/{cpus,tasks,timerlist}.py.
"""

import re

import gdb
from gdb.unwinder import Unwinder, register_unwinder

# kernel/sync/src/context.rs: the bits of preempt_count.
PREEMPT_MASK = 0x000000FF
SOFTIRQ_OFFSET = 0x00000100
SOFTIRQ_MASK = 0x0000FF00
HARDIRQ_MASK = 0x000F0000
NMI_MASK = 0x00F00000
NOTHING_WANTED = 0x80000000

INTERRUPT_FLAG = 0x200
WORD = 8
MAX_FRAMES = 64
# Saved by the switch between threads, from the stack pointer up: r15 r14 r13 r12 rbx rbp, and where it goes on.
SAVED_RBP = 5 * WORD
SAVED_IP = 6 * WORD
HASH = r"::h[0-9a-f]{16}\b"
TRAMPOLINE = "grange_arch::task::trampoline"
# Functions that say how a thread sleeps, not why.
HOW = ("grange_sched::switch::", "grange_sched::wait::", "grange_sched::mutex::", "grange_arch::", "core::", "<")


class Stale(gdb.GdbError):
    """The kernel has not what this script looks for."""

    def __init__(self, what):
        super().__init__(f"{what}: xtask/gdb/grange.py and this kernel do not fit, or it has no debug information")


# --- values ---------------------------------------------------------------------------------------------------------


def static(path):
    """The static of that path."""
    symbol = gdb.lookup_global_symbol(path) or gdb.lookup_static_symbol(path)
    if symbol is None:
        raise Stale(f"no static {path}")
    return symbol.value()


def field(value, name):
    """A field, read through what only wraps a struct (Cell, UnsafeCell, MaybeUninit, the lock around it)."""
    value = bare(value)
    if not any(member.name == name for member in value.type.strip_typedefs().fields()):
        raise Stale(f"{value.type} has no field {name}")
    return value[name]


def bare(value):
    """What is inside types with one field that takes space: atomics, cells, newtypes, per-CPU variables."""
    while True:
        kind = value.type.strip_typedefs()
        if kind.code not in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
            return value
        inner = [member for member in kind.fields() if member.type.sizeof > 0]
        if len(inner) != 1 or inner[0].type.sizeof != kind.sizeof:
            return value
        value = value[inner[0]]


def number(value):
    """The number or address inside."""
    value = bare(value)
    if value.type.strip_typedefs().code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        raise Stale(f"{value.type} is no number")
    return int(value) % (1 << 64)


def mask(path):
    """The CPUs in an AtomicCpuMask."""
    words = bare(static(path))
    low, high = words.type.strip_typedefs().range()
    return {64 * at + bit for at in range(low, high + 1) for bit in range(64) if number(words[at]) >> bit & 1}


def kind(path):
    """The type of that path."""
    try:
        return gdb.lookup_type(path)
    except gdb.error as error:
        raise Stale(f"no type {path}") from error


def at(address, what):
    """What lies at an address, as a value of a type."""
    # gdb takes Python's numbers as signed ones of 64 bits.
    signed = address - (1 << 64) if address >> 63 else address
    return gdb.Value(signed).cast(what.pointer()).dereference()


def word_at(address):
    return int.from_bytes(bytes(gdb.selected_inferior().read_memory(address, WORD)), "little")


def plural(count, what):
    return f"{count} {what}" + ("" if count == 1 else "s")


def show(head, rows):
    """Prints a table."""
    rows = [head] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        gdb.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n")


# --- CPUs -----------------------------------------------------------------------------------------------------------


def offset_of(cpu):
    """What a CPU's GS base holds: its area minus the template."""
    return number(bare(static("grange_arch::percpu::OFFSETS"))[cpu])


def on_cpu(variable, cpu):
    """A CPU's copy of a per-CPU variable."""
    value = bare(static(variable)) if isinstance(variable, str) else bare(variable)
    return at((int(value.address) + offset_of(cpu)) % (1 << 64), value.type)


def present():
    cpus = sorted(mask("grange_arch::cpu::PRESENT"))
    if not cpus or not any(offset_of(cpu) for cpu in cpus):
        raise gdb.GdbError("the kernel has not made its CPUs' areas yet: let it run on, for example to a breakpoint")
    return cpus


class Selected:
    """Leaves gdb's choice of a thread as it was."""

    def __enter__(self):
        self.was = gdb.selected_thread()
        if self.was is None:
            raise gdb.GdbError("no machine and no core file: nothing to look at")

    def __exit__(self, *_):
        self.was.switch()


def register(name):
    return int(gdb.parse_and_eval(f"(${name})")) & 0xFFFFFFFFFFFFFFFF


def vcpus():
    """gdb's thread of each CPU. To be called inside Selected."""
    cpu_of = {offset_of(cpu): cpu for cpu in present()}
    found = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        cpu = cpu_of.get(register("gs_base"))
        if cpu is not None:
            found[cpu] = thread
    return found


def context_word(count):
    for bits, word in ((NMI_MASK, "nmi"), (HARDIRQ_MASK, "irq"), (SOFTIRQ_OFFSET, "softirq")):
        if count & bits:
            return word
    return "task"


def decoded(count):
    """preempt_count in words."""
    words = [
        (count & PREEMPT_MASK, "preempt"),
        ((count & SOFTIRQ_MASK) >> 9, "bh off"),
        ((count & HARDIRQ_MASK) >> 16, "irq"),
        ((count & NMI_MASK) >> 20, "nmi"),
    ]
    text = [f"{word} {depth}" for depth, word in words if depth]
    if not count & NOTHING_WANTED:
        text.append("wanted")
    return ", ".join(text) or "0"


class Cpus(gdb.Command):
    """gr-cpus: what each CPU does.

    preempt_count in words: depth of guards, soft interrupts held off, interrupts, NMIs; `wanted`: a reschedule, or a look at soft interrupts."""

    def __init__(self):
        super().__init__("gr-cpus", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        no_argument("gr-cpus", argument)
        with Selected():
            vcpu = vcpus()
            online = mask("grange_arch::cpu::ONLINE")
            rows = []
            for cpu in present():
                thread = current(cpu)
                count = number(on_cpu("grange_sync::context::PREEMPT_COUNT", cpu))
                queued = number(field(on_cpu("grange_sched::rq::RUN_QUEUE", cpu), "queued"))
                irqs = place = "?"
                if cpu in vcpu:
                    vcpu[cpu].switch()
                    irqs = "on" if register("eflags") & INTERRUPT_FLAG else "off"
                    place = where(register("rip"))
                rows.append([
                    cpu,
                    "online" if cpu in online else "offline",
                    thread,
                    "idle" if thread.idle else "busy",
                    context_word(count),
                    irqs,
                    decoded(count),
                    queued,
                    place,
                ])
        show(["cpu", "state", "task", "idle", "in", "irqs", "preempt_count", "queued", "at"], rows)


class PerCpu(gdb.Command):
    """gr-percpu NAME [CPU]: a per-CPU variable on one CPU or on all.

    NAME is a path or its end: RUN_QUEUE, thread::CURRENT."""

    def __init__(self):
        super().__init__("gr-percpu", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        words = gdb.string_to_argv(argument)
        if not 1 <= len(words) <= 2:
            raise gdb.GdbError("gr-percpu NAME [CPU]: a per-CPU variable such as PREEMPT_COUNT, and a CPU's number")
        path = self.find(words[0])
        cpus = present()
        if len(words) == 2:
            if not words[1].isdigit() or int(words[1]) not in cpus:
                raise gdb.GdbError(f"no CPU {words[1]}: {', '.join(map(str, cpus))} are there")
            cpus = [int(words[1])]
        for cpu in cpus:
            value = on_cpu(path, cpu)
            gdb.write(f"cpu {cpu} at {int(value.address):#x}: {value.format_string(max_elements=16)}\n")

    @staticmethod
    def find(name):
        if not re.fullmatch(r"\w+(::\w+)*", name):
            raise gdb.GdbError(f"{name} is no name: a per-CPU variable such as PREEMPT_COUNT or thread::CURRENT")
        said = gdb.execute(rf"info variables -q \(^\|::\){name}$", to_string=True)
        found = sorted(set(re.findall(r"PerCpu<([\w:]+)>;", said)))
        if len(found) > 1:
            raise gdb.GdbError(f"{name} may be any of {', '.join(found)}")
        if not found:
            raise gdb.GdbError(f"no per-CPU variable {name} in a crate with full debug information (Cargo.toml names them)")
        return found[0]


# --- threads --------------------------------------------------------------------------------------------------------


class Thread:
    """A thread of the kernel."""

    def __init__(self, address):
        self.address = address
        self.value = at(self.address, kind("grange_sched::thread::Thread"))
        get = lambda name: number(field(self.value, name))
        self.tid, self.cpu, self.on_cpu, self.idle = get("tid"), get("cpu"), get("on_cpu"), get("is_idle")
        self.voluntary, self.involuntary = get("voluntary"), get("involuntary")
        name = bare(field(self.value, "name"))
        low, high = name.type.range()
        letters = bytes(number(name[at]) for at in range(low, high + 1))
        self.name = letters.split(b"\0")[0].decode(errors="replace")
        self.prio = number(field(field(self.value, "rq"), "prio"))

    def __str__(self):
        return f"{self.name}/{self.tid}"

    def state(self):
        """As `ps` in the kernel's shell says it."""
        state = number(field(self.value, "state"))
        words = {member.enumval: member.name.split("::")[-1].lower() for member in kind("grange_sched::state::State").fields()}
        if state not in words:
            raise Stale(f"no State {state}")
        return "ready" if words[state] == "running" and not self.on_cpu else words[state]

    def frames(self):
        """Return addresses of a thread that has no CPU, innermost first."""
        sp = number(field(self.value, "context"))
        try:
            ip, frame = word_at(sp + SAVED_IP), word_at(sp + SAVED_RBP)
            for _ in range(MAX_FRAMES):
                if ip == 0:
                    return
                yield ip
                if frame == 0:
                    return
                ip, frame = word_at(frame + WORD), word_at(frame)
        except gdb.MemoryError:
            return

    def sleeps_at(self):
        """The first place on its stack that is not in the machinery of sleeping."""
        frames = list(self.frames())
        if [symbol_of(ip) for ip in frames] == [TRAMPOLINE]:
            return "has not run yet"
        for ip in frames:
            for place in places(ip - 1):
                if not place.startswith(HOW) and not is_helper(place):
                    return place
        return where(frames[0] - 1) if frames else "?"


def threads():
    """All live threads, by number."""
    found = []
    address = number(static("grange_sched::thread::ALL"))
    while address:
        thread = Thread(address)
        if thread.tid:
            found.append(thread)
        address = number(field(thread.value, "all_next"))
    return sorted(found, key=lambda thread: thread.tid)


def current(cpu):
    """The thread that a CPU runs."""
    return Thread(number(on_cpu("grange_sched::thread::CURRENT", cpu)))


def symbol_of(ip):
    """The function of the symbol table at an address, without its hash."""
    said = gdb.execute(f"info symbol {ip:#x}", to_string=True)
    if said.startswith("No symbol"):
        return None
    name = re.split(r" \+ \d+ in section | in section ", said)[0]
    return re.sub(HASH, "", name)


def function(ip):
    return symbol_of(ip) or f"{ip:#x}"


def places(ip):
    """The functions inlined at an address, innermost first, and the one that holds them: `function at file:line` for the
    first, and the function alone for the others, of which gdb does not tell the line."""
    line, block, found = gdb.find_pc_line(ip), gdb.block_for_pc(ip), []
    while block is not None and not block.is_static and not block.is_global:
        if block.function is not None:
            # Of the one that holds the others the symbol table has the whole path, which debug information may lack.
            inlined = block.superblock is not None and not block.superblock.is_static
            name = block.function.name if inlined else function(ip)
            at = f" at {line.symtab.filename}:{line.line}" if line.symtab and not found else ""
            found.append(f"{name}{at}")
        block = block.superblock
    return found or [function(ip)]


def is_helper(place):
    """A function of core, or one whose name has no path: a generic one, inlined."""
    return place.startswith("core::") or "::" not in place.split("<")[0].split(" at ")[0]


def where(ip):
    """The innermost function of the kernel's own at an address."""
    all_places = places(ip)
    return next((place for place in all_places if not is_helper(place)), all_places[0])


class Tasks(gdb.Command):
    """gr-tasks: all threads, as `ps` in the kernel's shell, and where each one that has no CPU goes on."""

    def __init__(self):
        super().__init__("gr-tasks", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        no_argument("gr-tasks", argument)
        rows = [
            [
                thread.tid,
                thread.name,
                thread.state() if not thread.on_cpu else "running",
                thread.cpu,
                thread.prio,
                thread.voluntary,
                thread.involuntary,
                "on its CPU" if thread.on_cpu else thread.sleeps_at(),
            ]
            for thread in threads()
        ]
        show(["tid", "name", "state", "cpu", "prio", "voluntary", "involuntary", "where"], rows)


class BtAll(gdb.Command):
    """gr-bt-all [threads]: backtraces of all CPUs; with `threads` also of all threads that have no CPU."""

    def __init__(self):
        super().__init__("gr-bt-all", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        if argument.strip() not in ("", "threads"):
            raise gdb.GdbError(f"gr-bt-all {argument}: either nothing or `threads`")
        with Selected():
            vcpu = vcpus()
            for cpu in present():
                gdb.write(f"cpu {cpu}, task {current(cpu)}\n")
                if cpu in vcpu:
                    vcpu[cpu].switch()
                    said = gdb.execute(f"backtrace {MAX_FRAMES}", to_string=True)
                    gdb.write(re.sub(HASH, "", said))
                else:
                    gdb.write("has no vCPU with its GS base: not started\n")
        if argument.strip():
            for thread in threads():
                if not thread.on_cpu:
                    gdb.write(f"task {thread}, {thread.state()}\n")
                    for at, ip in enumerate(thread.frames()):
                        gdb.write(f"#{at:<2} {ip:#018x} in {where(ip - 1)}\n")


def select_the_dying():
    """Chooses the vCPU that speaks for a kernel that dies, if one does: `xtask debug --core` begins there."""
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        if function(register("rip")).startswith("grange::panic::"):
            gdb.execute("frame")
            return
    gdb.execute("thread 1")


# --- RCU ------------------------------------------------------------------------------------------------------------

# kernel/rcu/src/gp.rs: what its thread does.
PHASES = ("idle", "sets up", "waits for readers", "cleans up")


def sequence(value):
    """A grace period's number as the kernel prints it, and whether one runs."""
    raw = number(value)
    return (raw >> 2) - (1 << 62 if raw >> 63 else 0), bool(raw & 3)


class Node:
    """A node of the combining tree."""

    def __init__(self, value):
        place, state = field(value, "place"), field(field(value, "state"), "value")
        self.level, self.first, self.last = (number(field(place, name)) for name in ("level", "cpu_lo", "cpu_hi"))
        self.gp_seq, _ = sequence(field(value, "gp_seq"))
        self.qsmask, self.expmask, self.online = (number(field(state, name)) for name in ("qsmask", "expmask", "online"))
        readers = field(state, "blkd")
        self.blockers = [list(self.chain(number(field(readers, first)))) for first in ("gp_tasks", "exp_tasks")]

    @staticmethod
    def chain(address):
        """Readers that lost their CPU, from one on."""
        while address:
            thread = Thread(address)
            yield thread
            address = number(field(field(thread.value, "rcu"), "blocked_next"))

    def cpus(self, bits):
        return [self.first + bit for bit in range(64) if bits >> bit & 1]


def rcu_nodes():
    """All nodes, the root first; none before the tree is there."""
    nodes = field(field(static("grange_rcu::tree::TREE"), "data"), "nodes")
    first, count = nodes["data_ptr"], int(nodes["length"])
    if not count or not int(first):
        raise gdb.GdbError("the kernel has not built RCU's tree yet: let it run on, for example to a breakpoint")
    return [Node(first[at].dereference()) for at in range(count)]


class Rcu(gdb.Command):
    """gr-rcu: RCU's grace periods, its tree, whom they wait for, callbacks by CPU, as `rcu` in the kernel's shell.

    Of callbacks: all that have not run; then those that are over, wait for the running grace period, for the next, and have
    not been looked at."""

    def __init__(self):
        super().__init__("gr-rcu", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        no_argument("gr-rcu", argument)
        nodes = rcu_nodes()
        leaves = [node for node in nodes if node.level == nodes[-1].level]
        phase = PHASES[number(static("grange_rcu::gp::PHASE"))]
        for what, path, bits, which, more in (
            ("grace period", "grange_rcu::gp::SEQ", "qsmask", 0, f", its thread {phase}"),
            ("expedited grace period", "grange_rcu::exp::SEQ", "expmask", 1, ""),
        ):
            count, runs = sequence(static(path))
            gdb.write(f"{what} {count} {'runs' if runs else 'is over'}{more}\n")
            awaited = [f"cpu {cpu}" for leaf in leaves for cpu in leaf.cpus(getattr(leaf, bits))]
            awaited += [f"task {thread}" for leaf in leaves for thread in leaf.blockers[which]]
            if runs:
                gdb.write(f"waits for {', '.join(awaited) or 'nobody'}\n")
        show(
            ["level", "cpus", "gp_seq", "qsmask", "expmask", "online", "blocked"],
            [
                [
                    node.level,
                    "  " * node.level + f"{node.first}-{node.last}",
                    node.gp_seq,
                    f"{node.qsmask:#x}",
                    f"{node.expmask:#x}",
                    f"{node.online:#x}",
                    len(node.blockers[0]),
                ]
                for node in nodes
            ],
        )
        rows = []
        for cpu in present():
            shared, own = on_cpu("grange_rcu::cpu::SHARED", cpu), on_cpu("grange_rcu::cpu::OWN", cpu)
            callbacks = field(field(own, "cbs"), "value")
            segments = [number(field(field(callbacks, name), "len")) for name in ("done", "wait", "next_ready", "next")]
            watched = "yes" if number(field(shared, "watching")) & 1 else "no"
            rows.append([cpu, watched, number(field(shared, "cb_len")), *segments])
        show(["cpu", "watched", "callbacks", "done", "wait", "next_ready", "next"], rows)


def no_argument(command, argument):
    if argument.strip():
        raise gdb.GdbError(f"{command} takes no argument")


# --- backtraces through interrupts ----------------------------------------------------------------------------------


class FrameId:
    """What gdb knows a frame by."""

    def __init__(self, sp, pc):
        self.sp, self.pc = sp, pc


class TrapUnwinder(Unwinder):
    """From the entry code of interrupts to the code that was interrupted: gdb cannot know the frame that lies there
    (kernel/arch/src/bare/entry.rs). Above it lie the two words for the kernel's own backtraces."""

    RETURN = bytes.fromhex("4883c410415f")  # add rsp,16; pop r15: what follows the call of `dispatch`

    def __init__(self):
        super().__init__("grange-trap")

    def __call__(self, pending):
        pc = int(pending.read_register("rip")) & 0xFFFFFFFFFFFFFFFF
        try:
            if not (symbol_of(pc) or "").startswith("grange_trap_"):
                return None
            if bytes(gdb.selected_inferior().read_memory(pc, len(self.RETURN))) != self.RETURN:
                return None
            sp = int(pending.read_register("rsp")) & 0xFFFFFFFFFFFFFFFF
            frame = at(sp + 2 * WORD, kind("grange_arch::bare::trap::TrapFrame"))
        except (gdb.error, gdb.GdbError):
            return None
        like = pending.read_register("rip").type
        unwound = pending.create_unwind_info(FrameId(pending.read_register("rsp"), pending.read_register("rip")))
        for name in ("r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"):
            unwound.add_saved_register(name, field(field(frame, "regs"), name))
        unwound.add_saved_register("rip", field(frame, "ip").cast(like))
        unwound.add_saved_register("rsp", field(frame, "sp"))
        return unwound


register_unwinder(None, TrapUnwinder(), replace=True)
for command in (Cpus, Tasks, BtAll, PerCpu, Rcu):
    command()
