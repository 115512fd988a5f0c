"""What one lane computes in machine code of sm_90, as far as it decides where the lane goes.

Integers, addresses, predicates, shared memory and the launch's parameters have values; what comes from global
memory, from floating point or from other lanes is unknown, and so is what any instruction makes of it that is
not listed here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from operands import (
    FIXED,
    M32,
    PREDICATE,
    REGISTER,
    Lane,
    address,
    after,
    as_float,
    both,
    bytes_of,
    compare,
    float_bits,
    half_bits,
    look_up,
    lop3,
    permuted,
    reader,
    s32,
    shift,
    slot,
    to_float_up,
)  # fmt: skip
from sass import Instruction


class Operands:
    """A line's operands in their places: destination, predicates behind it, values, predicates at the end."""

    def __init__(self, operands: list[str], uniform: bool):
        kind = "UP" if uniform else "P"
        is_predicate = re.compile(rf"!?{kind}(\d|T)$").match
        self.destination, rest = operands[0], operands[1:]
        self.out: list[str] = []
        while rest and is_predicate(rest[0]):
            self.out.append(rest.pop(0))
        self.carries: list[str] = []
        while rest and is_predicate(rest[-1]):
            self.carries.insert(0, rest.pop())
        self.values = rest


Known = tuple[list[str], list[Callable], Callable]


@dataclass
class Integer:
    """An instruction whose results are known if all its operands are.

    Attributes:
        parts: of its name without the U of uniform registers: IMAD, WIDE, U32.
        o: its operands in their places.
        values, carries: how they are read.
    """

    parts: list[str]
    o: Operands
    values: list[Callable]
    carries: list[Callable]

    def __call__(self, function: Callable, count: int | None = None, outs: tuple[str, ...] = ()) -> Known:
        """Destinations, operands and the function from these to results, more than one in a tuple."""
        return [self.o.destination, *outs], [*self.values[:count], *self.carries], function


def move(i: Integer) -> Known:
    return i(lambda *v: v[-1] & M32)


def read_uniform(i: Integer) -> Known:
    return i(lambda v: v & M32, count=1)


def add(i: Integer) -> Known:
    def total(*v: int) -> tuple:
        return sum(v) & M32, sum(v) >> 32 >= 1, sum(v) >> 32 >= 2

    return i(total, outs=tuple(i.o.out))


def multiply_add(i: Integer) -> Known:
    if "WIDE" not in i.parts and "HI" not in i.parts:
        return i(lambda a, b, c, *x: a * b + c + sum(x) & M32)
    i.values[2] = reader(i.o.values[2], wide=True)

    def total(a: int, b: int, c: int) -> int:
        return (a & M32) * (b & M32) + c if "U32" in i.parts else s32(a) * s32(b) + c

    if "HI" in i.parts:
        return i(lambda *v: total(*v) >> 32 & M32)
    return i(
        lambda *v: (total(*v) & M32, total(*v) >> 32 & M32, total(*v) >> 64 & 1 == 1),
        outs=(after(i.o.destination), *i.o.out),
    )


def shift_add(i: Integer) -> Known:
    shift_by = int(i.o.values[-1], 16)
    if "SX32" in i.parts:
        return i(lambda a, b, *x: (s32(a) >> 32 - shift_by) + b + sum(x) & M32, count=2)
    if "HI" in i.parts:
        return i(lambda a, b, c, *x: ((c << 32 | a & M32) >> 32 - shift_by & M32) + b + sum(x) & M32, count=3)

    def total(a: int, b: int) -> tuple:
        found = (a << shift_by & M32) + b
        return found & M32, found >> 32 >= 1

    return i(total, count=2, outs=tuple(i.o.out))


def shifted(i: Integer) -> Known:
    return i(lambda low, n, high: shift(".".join(i.parts), low, n, high))


def select(i: Integer) -> Known:
    return i(lambda a, b, first: (a if first else b) & M32)


def extreme(i: Integer) -> Known:
    of = (lambda v: v & M32) if "U32" in i.parts else s32
    return i(lambda a, b, least: (min if least else max)(of(a), of(b)) & M32)


def add_extreme(i: Integer) -> Known:
    return i(lambda a, b, c, least: (min if least else max)(s32(a + b), s32(c)) & M32)


def extended(i: Integer) -> Known:
    if "U32" in i.parts:
        return i(lambda a, n: a & (1 << n) - 1)
    return i(lambda a, n: s32((a << 32 - n) & M32) >> 32 - n & M32)


def half_constant(i: Integer) -> Known | None:
    """A constant as two halves: what is added to nothing times nothing."""
    if i.o.values[0] != "-RZ":
        return None
    return i(lambda *v: half_bits(v[-2]) << 16 | half_bits(v[-1]))


def to_float(i: Integer) -> Known | None:
    if "F64" in i.parts:
        return None
    if "U64" in i.parts or "S64" in i.parts:
        i.values[0] = reader(i.o.values[0], wide=True)
        return i(to_float_up)
    return i(lambda a: to_float_up(a & M32 if "U32" in i.parts else s32(a)))


def from_float(i: Integer) -> Known:
    if "U64" in i.parts:
        return i(lambda a: ((v := int(as_float(a))) & M32, v >> 32 & M32), outs=(after(i.o.destination),))
    return i(lambda a: int(as_float(a)) & M32)


def reciprocal(i: Integer) -> Known | None:
    if i.parts != ["MUFU", "RCP"]:
        return None
    return i(lambda a: float_bits(1 / as_float(a)) if as_float(a) else None)


MAKERS: dict[str, Callable[[Integer], Known | None]] = {
    "MOV": move, "MOV32I": move, "R2UR": read_uniform, "IADD3": add, "VIADD": add, "IMAD": multiply_add,
    "LEA": shift_add, "SHF": shifted, "SEL": select, "FSEL": select, "VIMNMX": extreme, "IMNMX": extreme,
    "VIADDMNMX": add_extreme, "SGXT": extended, "HFMA2": half_constant, "I2F": to_float, "I2FP": to_float,
    "F2I": from_float, "MUFU": reciprocal,
    "IABS": lambda i: i(lambda a: abs(s32(a))),
    "POPC": lambda i: i(lambda a: bin(a & M32).count("1")),
    "PRMT": lambda i: i(permuted),
}  # fmt: skip


def integer(i: Instruction) -> Known | None:
    """How an instruction is computed whose results are known if all operands are."""
    uniform = i.name.startswith("U")
    parts = i.name.removeprefix("U").split(".")
    if parts[0] not in MAKERS:
        return None
    o = Operands(i.operands, uniform)
    made = Integer(parts, o, [reader(v) for v in o.values], [reader(c) for c in o.carries])
    return MAKERS[parts[0]](made)


def shared_access(i: Instruction) -> Callable[[Lane], None]:
    size, loads = bytes_of(i.name), i.base == "LDS"
    at = address(i.operands[1 if loads else 0])
    register = slot(REGISTER.match(i.operands[0 if loads else 1])[0])
    words = max(1, size // 4)

    def load(lane: Lane) -> None:
        begin = at(lane)
        for w in range(words):
            found = None
            if begin is not None:
                raw = [lane.shared.get(begin + 4 * w + b) for b in range(min(size, 4))]
                found = None if None in raw else sum(b << 8 * n for n, b in enumerate(raw))
            if register is not None:
                lane.slots[register + w] = found

    def store(lane: Lane) -> None:
        begin = at(lane)
        if begin is None:
            return
        for w in range(words):
            value = 0 if register is None else lane.slots[register + w]
            for b in range(min(size, 4)):
                lane.shared[begin + 4 * w + b] = None if value is None else value >> 8 * b & 0xFF

    return load if loads else store


def constant_load(i: Instruction) -> Callable[[Lane], None]:
    size = bytes_of(i.name)
    read = reader(i.operands[1], wide=size == 8)
    index = slot(i.operands[0])

    def load(lane: Lane) -> None:
        value = read(lane)
        if value is not None and size < 4:
            value &= (1 << 8 * size) - 1
        lane.slots[index] = None if value is None else value & M32
        if size == 8:
            lane.slots[index + 1] = None if value is None else value >> 32

    return load


def special_load(i: Instruction) -> Callable[[Lane], None]:
    index, name = slot(i.operands[0]), i.operands[1]

    def load(lane: Lane) -> None:
        lane.slots[index] = FIXED.get(name, lane.special.get(name))
        if i.base == "CS2R" and not i.name.endswith(".32"):
            lane.slots[index + 1] = lane.slots[index] if name == "SRZ" else None

    return load


def predicates(i: Instruction) -> Callable[[Lane], None] | None:
    """Instructions that make predicates of what may be unknown."""
    base = i.base.removeprefix("U")
    if base in ("ISETP", "FSETP", "DSETP", "HSETP2"):
        parts = i.name.split(".")
        how = next(p for p in parts if p in ("AND", "OR", "XOR"))
        outs = [slot(p) for p in i.operands[:2]]
        a, b, *rest = [reader(v) for v in i.operands[2:]]

        def set_predicates(lane: Lane) -> None:
            x, y, other = a(lane), b(lane), rest[0](lane)
            lower = rest[1](lane) if len(rest) > 1 else None
            found = None
            if base == "ISETP" and x is not None and y is not None:
                found = compare(i.name, x, y, lower)
            for out, value in zip(outs, (found, None if found is None else not found), strict=True):
                if out is not None:
                    lane.slots[out] = both(value, other, how)

        return set_predicates
    if base == "PLOP3":
        outs = [slot(p) for p in i.operands[:2]]
        inputs = [reader(p) for p in i.operands[2:5]]
        tables = [int(t, 16) for t in i.operands[5:7]]

        def combine(lane: Lane) -> None:
            values = [read(lane) for read in inputs]
            for out, table in zip(outs, tables, strict=True):
                if out is not None:
                    lane.slots[out] = look_up(table, *values)

        return combine
    if base == "LOP3":
        operands = list(i.operands)
        out = slot(operands.pop(0)) if REGISTER.match(operands[0])[2] in ("P", "UP") else None
        index, inputs = slot(operands[0]), [reader(v) for v in operands[1:4]]
        table = int(operands[4], 16)

        def logic(lane: Lane) -> None:
            values = [read(lane) for read in inputs]
            result = None if None in values else lop3(*values, table)
            if result is None and table == 0xC0 and 0 in values[:2]:
                result = 0
            if index is not None:
                lane.slots[index] = result
            if out is not None:
                lane.slots[out] = None if result is None else result != 0

        return logic
    if base == "P2R":
        index, other, mask = slot(i.operands[0]), reader(i.operands[2]), reader(i.operands[3])

        def pack(lane: Lane) -> None:
            kept, chosen = other(lane), mask(lane)
            bits = lane.slots[PREDICATE : PREDICATE + 7]
            wanted = [b for n, b in enumerate(bits) if chosen >> n & 1]
            known = kept is not None and None not in wanted
            value = sum(bool(b) << n for n, b in enumerate(bits) if chosen >> n & 1)
            lane.slots[index] = kept & ~chosen & M32 | value if known else None

        return pack
    if base == "R2P":
        source, mask = reader(i.operands[1]), reader(i.operands[2])

        def unpack(lane: Lane) -> None:
            value, chosen = source(lane), mask(lane)
            for n in range(7):
                if chosen >> n & 1:
                    lane.slots[PREDICATE + n] = None if value is None else bool(value >> n & 1)

        return unpack
    return None


def action(i: Instruction) -> Callable[[Lane], None]:
    """What the instruction does to a lane; where it goes next is not part of it."""
    if i.base in ("LDS", "STS"):
        return shared_access(i)
    if i.base in ("LDC", "ULDC") and "c[0x0]" in i.operands[1]:
        return constant_load(i)
    if i.base in ("S2R", "S2UR", "CS2R"):
        return special_load(i)
    if made := predicates(i):
        return made
    known = integer(i) if i.operands and REGISTER.match(i.operands[0]) else None
    if known is None:
        return forget(i)
    outs, reads, function = [slot(d) for d in known[0]], known[1], known[2]

    def compute(lane: Lane) -> None:
        values = [read(lane) for read in reads]
        results = (None,) * len(outs) if None in values else function(*values)
        if not isinstance(results, tuple):
            results = (results,)
        for out, value in zip(outs, results, strict=False):
            if out is not None:
                lane.slots[out] = value

    return compute


WRITES_NOTHING = ("ST", "RED", "BAR", "DEPBAR", "LDGSTS", "BRA", "EXIT", "NOP", "BS", "WARPSYNC", "YIELD")


def forget(i: Instruction) -> Callable[[Lane], None]:
    """The registers that the instruction writes become unknown."""
    outs: list[int] = []
    if i.operands and not i.base.startswith(WRITES_NOTHING) and i.base != "LDGSTS":
        for operand in i.operands[:2]:
            match = REGISTER.fullmatch(operand)
            if not match or (operand is i.operands[1] and match[2] not in ("P", "UP")):
                break
            index = slot(operand)
            if index is None:
                continue
            wide = match[2] in ("R", "UR")
            count = {"HMMA": 4, "LDSM": 4, "DMMA": 2, "DADD": 2, "DMUL": 2, "DFMA": 2}.get(i.base, 0)
            outs += range(index, index + (count or max(1, bytes_of(i.name) // 4) if wide else 1))

    def unknown(lane: Lane) -> None:
        for out in outs:
            lane.slots[out] = None

    return unknown
