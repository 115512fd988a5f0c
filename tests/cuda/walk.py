"""Clocks of one block of a kernel on sm_90: its warps walk through the machine code, issue after issue.

Stalls and scoreboards are those that ptxas wrote; what is variable takes what the table below assumes. A
warp's first lane is computed (lane.py), so warps find their way through loops and branches by themselves.

Not in it: bank conflicts, misses of the instruction cache, lanes that part, and what other blocks do to L2
and memory: copies arrive after a fixed time, however much is under way.
"""

import heapq
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import sass
from lane import action, forget
from operands import PARAMETERS, STACK, Lane, bytes_of, reader


@dataclass(frozen=True)
class Launch:
    """What the host would have launched."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    parameters: bytes


# ---- assumptions ----
# Clocks until a result with a scoreboard is there (published microbenchmarks of sm_80 and sm_90, rounded);
# what has none is in ptxas' stall counts.
LATENCY = {
    "LDS": 30, "LDSM": 34, "STS": 12, "SHFL": 24, "MUFU": 22, "LDC": 30, "ULDC": 12, "S2R": 25, "S2UR": 25,
    "R2UR": 12, "HMMA": 33, "DMMA": 37, "I2F": 22, "F2I": 22, "F2F": 22, "POPC": 20, "FLO": 20, "VOTE": 12,
    "LDG": 280, "LD": 280, "ATOMS": 40, "DADD": 16, "DMUL": 16, "DFMA": 16, "DSETP": 16,
}  # fmt: skip
OTHERWISE = 6
OPERANDS_READ = 10  # until an instruction with a scoreboard has read its operands
COPY = 800  # until an asynchronous copy has arrived: device memory
BARRIER, BRANCH = 30, 6  # after the last warp came; of a taken branch, beyond its stall
# Clocks that an instruction keeps a unit of one of the four schedulers busy. Tensor cores: mma.sync at 62 %
# of the rate of wgmma, as published for an H100; the rest: throughput table of the CUDA programming guide.
TENSOR, FLOAT64 = {"HMMA": 6.4, "DMMA": 12.0}, {"DADD": 2.0, "DMUL": 2.0, "DFMA": 2.0, "DSETP": 2.0}
SPECIAL = {"MUFU": 8.0, "I2F": 2.0, "F2I": 2.0, "F2F": 2.0, "POPC": 2.0, "FLO": 2.0}
INTEGER = dict.fromkeys(
    "IADD3 VIADD LOP3 ISETP SHF LEA SEL PRMT VIMNMX VIADDMNMX IMNMX FMNMX FSETP FSEL IABS PLOP3 F2FP".split(),
    2.0,
)
MULTIPLY = dict.fromkeys(("IMAD", "HFMA2"), 2.0)
# Bytes per clock that shared memory and the first cache move, for all schedulers together.
SHARED_BYTES = 128
MEMORY = ("LDS", "STS", "LDSM", "SHFL", "LDG", "STG", "LDGSTS", "LD", "ST")
LANES, SCHEDULERS = 32, 4


class Lost(Exception):
    """The tool cannot tell where a warp goes."""


@dataclass
class Program:
    """A kernel, every instruction with what it does and costs."""

    kernel: sass.Kernel
    functions: Callable[[sass.Instruction], str]

    def __post_init__(self):
        code = self.kernel.instructions
        self.at = {i.pc: n for n, i in enumerate(code)}
        self.actions = [action(i) for i in code]
        self.unknown = [forget(i) if i.guard else None for i in code]
        self.guards = [reader(i.guard) if i.guard else None for i in code]
        self.owners = [self.functions(i) for i in code]
        self.units = [unit_of(i) for i in code]

    def likely(self, at: int) -> bool:
        """Whether a branch that data decides is taken: if that spares a call, which rare numbers need."""
        i, code = self.kernel.instructions[at], self.kernel.instructions
        if i.base != "BRA":
            return False
        if self.target(i) <= at:
            raise Lost(f"{self.kernel.name}: whether the branch at {i.pc:#x} goes back depends on data")
        return any(other.base == "CALL" for other in code[at + 1 : self.target(i)])

    def target(self, i: sass.Instruction) -> int:
        return self.kernel.labels[re.search(r"`\(([^)]+)\)", i.operands[-1])[1]]


def unit_of(i: sass.Instruction) -> tuple[str, float] | None:
    """The unit that an instruction occupies, and for how long."""
    for unit, rates in (
        ("tensor", TENSOR),
        ("float64", FLOAT64),
        ("special", SPECIAL),
        ("integer", INTEGER),
        ("multiply", MULTIPLY),
    ):
        if i.base in rates:
            return unit, rates[i.base]
    if i.base in MEMORY:
        size = 512 if i.base == "LDSM" and i.name.endswith(".4") else LANES * bytes_of(i.name)
        return "memory", max(1.0, size / SHARED_BYTES)
    return None


@dataclass
class Walker:
    """A warp on its way."""

    index: int
    lane: Lane
    at: int = 0
    ready: float = 0.0
    last: float = 0.0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: float = 0.0  # when the last copy that belongs to no group yet arrives
    groups: list[float] = field(default_factory=list)
    issued: int = 0


@dataclass
class Walk:
    """One block, from its first instruction to its last."""

    program: Program
    launch: Launch
    most: int = 4_000_000  # instructions

    def run(self) -> tuple[float, Counter]:
        """Clocks of the block, of the average warp by function, and of units at work: ``busy: unit``."""
        bank = bytearray(PARAMETERS) + self.launch.parameters
        bank[STACK : STACK + 4] = (0xFFFFF0).to_bytes(4, "little")
        for n, value in enumerate((self.launch.threads, 1, 1, *self.launch.grid)):
            bank[4 * n : 4 * n + 4] = value.to_bytes(4, "little")
        shared: dict[int, int] = {}
        special = {"SR_CTAID.X": 0, "SR_CTAID.Y": 0, "SR_CTAID.Z": 0, "SR_CgaCtaId": 0, "SR_LANEID": 0}
        self.undecided: Counter = Counter()
        self.warps = [
            Walker(
                w, Lane(special | {"SR_TID.X": LANES * w, "SR_TID.Y": 0, "SR_TID.Z": 0}, bytes(bank), shared)
            )
            for w in range(self.launch.threads // LANES)
        ]
        self.busy: dict[tuple, float] = {}
        self.spent: Counter = Counter()
        self.used: Counter = Counter()
        self.waiting: dict[str, list[Walker | None]] = {}  # by the number of the barrier; None goes on
        self.queue = [(0.0, w.index) for w in self.warps]
        count = 0
        while self.queue:
            time, index = heapq.heappop(self.queue)
            warp = self.warps[index]
            start = max(time, self.earliest(warp))
            if start > time:
                heapq.heappush(self.queue, (start, index))
                continue
            self.issue(warp, start)
            count += 1
            if count > self.most:
                raise Lost(f"{self.program.kernel.name}: no end after {count} instructions")
        if any(self.waiting.values()):
            raise Lost(f"{self.program.kernel.name}: warps wait at a barrier that others do not reach")
        total = max(w.ready for w in self.warps)
        self.issued = sum(w.issued for w in self.warps)
        of_units = {f"busy: {unit}": v for unit, v in self.used.items()}
        return total, Counter({name: v / len(self.warps) for name, v in self.spent.items()} | of_units)

    def earliest(self, warp: Walker) -> float:
        i = self.program.kernel.instructions[warp.at]
        start = max(warp.ready, self.busy.get(("issue", warp.index % SCHEDULERS), 0.0))
        for n in range(6):
            if i.waits >> n & 1:
                start = max(start, warp.scoreboards[n])
        if i.base == "DEPBAR":
            kept = int(i.operands[1], 16) if i.operands[0] == "SB0" else 0
            if len(warp.groups) > kept:
                start = max(start, warp.groups[len(warp.groups) - kept - 1])
        if unit := self.program.units[warp.at]:
            start = max(start, self.busy.get(self.where(warp, unit[0]), 0.0))
        return start

    def where(self, warp: Walker, unit: str) -> tuple:
        """Shared memory serves all schedulers, the other units one each."""
        return (unit,) if unit == "memory" else (unit, warp.index % SCHEDULERS)

    def issue(self, warp: Walker, start: float) -> None:
        program = self.program
        i, owner = program.kernel.instructions[warp.at], program.owners[warp.at]
        self.spent[owner] += start - warp.last
        warp.last = start
        warp.issued += 1
        self.busy["issue", warp.index % SCHEDULERS] = start + 1
        guard = program.guards[warp.at]
        runs = guard(warp.lane) if guard else True  # None: data decides
        if runs is not False:
            self.occupy(warp, i, start)
        warp.ready = start + max(i.stall, 1)
        self.advance(warp, i, runs, start)

    def occupy(self, warp: Walker, i: sass.Instruction, start: float) -> None:
        done = start
        if unit := self.program.units[warp.at]:
            place = self.where(warp, unit[0])
            self.busy[place] = done = start + unit[1]
            self.used[unit[0]] += unit[1] / (1 if len(place) == 1 else SCHEDULERS)
        if i.sets != 7:
            warp.scoreboards[i.sets] = max(warp.scoreboards[i.sets], done + LATENCY.get(i.base, OTHERWISE))
        if i.frees != 7:
            warp.scoreboards[i.frees] = max(warp.scoreboards[i.frees], done + OPERANDS_READ)
        if i.base == "LDGSTS":
            warp.copies = start + COPY
        elif i.base == "LDGDEPBAR":
            warp.groups.append(warp.copies)

    def advance(self, warp: Walker, i: sass.Instruction, runs: bool | None, start: float) -> None:
        """Lets the lane do the instruction and go on, wait or end."""
        lane, following = warp.lane, warp.at + 1
        if i.base in ("BRA", "EXIT", "CALL", "RET", "BSYNC", "BREAK"):
            following = self.jump(warp, i, runs)
            if following != warp.at + 1:
                warp.ready += BRANCH
        elif i.base == "BSSY":
            lane.meetings[i.operands[0]] = self.program.target(i)
        elif i.base == "BAR" and runs is not False:
            warp.at = following
            number, *threads = i.operands
            come = self.waiting.setdefault(number, [])
            come.append(warp if ".ARV" not in i.name else None)
            if len(come) == (int(threads[0], 16) // LANES if threads else self.living()):
                self.release(number, start)
            if ".ARV" in i.name:
                heapq.heappush(self.queue, (warp.ready, warp.index))
            return
        elif runs is not False:
            (self.program.actions if runs else self.program.unknown)[warp.at](lane)
        if following is None:
            lane.ended = True
            if len(self.waiting.get("0x0", ())) == self.living() > 0:
                self.release("0x0", start)
            return
        warp.at = following
        heapq.heappush(self.queue, (warp.ready, warp.index))

    def living(self) -> int:
        return sum(not w.lane.ended for w in self.warps)

    def release(self, number: str, start: float) -> None:
        for warp in filter(None, self.waiting.pop(number)):
            warp.ready = start + BARRIER
            self.spent["waiting for other warps"] += warp.ready - warp.last
            warp.last = warp.ready
            heapq.heappush(self.queue, (warp.ready, warp.index))

    def jump(self, warp: Walker, i: sass.Instruction, runs: bool | None) -> int | None:
        following, lane = warp.at + 1, warp.lane
        if i.base == "BRA" and len(i.operands) > 1 and ".DIV" not in i.name:
            condition = reader(i.operands[0])(lane)
            runs = condition if runs is True else runs
        if runs is None:
            self.undecided[i.pc] += 1
            runs = self.program.likely(warp.at)
        if ".DIV" in i.name or not runs:
            return following
        if i.base == "EXIT":
            return None
        if i.base == "BSYNC":
            return lane.meetings[i.operands[0]]
        if i.base == "BREAK":
            return following
        if i.base == "CALL":
            lane.calls.append(following)
            return self.program.target(i)
        if i.base == "RET":
            return lane.calls.pop()
        return self.program.target(i)
