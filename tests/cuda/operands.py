"""A lane's registers and memory, how operands of machine code read them, and integer arithmetic on them.

None is a value that nobody knows.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
PARAMETERS = 0x210  # where they begin in constant bank 0, on sm_90
STACK = 0x28  # and the initial stack pointer
UNIFORM, PREDICATE, UNIFORM_PREDICATE, SLOTS = 256, 320, 328, 336  # where their slots begin; RZ is slot 255
FIXED = {"RZ": 0, "URZ": 0, "PT": True, "UPT": True, "SRZ": 0}
BASES = {"R": 0, "UR": UNIFORM, "P": PREDICATE, "UP": UNIFORM_PREDICATE}
REGISTER = re.compile(r"([-~!|]*)(UR|UP|R|P|SR)(\d+|Z|T)\b")
CONSTANT = re.compile(r"([-~|]*)c\[0x0\]\[(?:(U?R\d+)\+?)?(-?0x[0-9a-f]+)?\]")

Value = int | bool | None


@dataclass
class Lane:
    """A lane of a warp; ``shared`` is the block's memory, byte by byte, ``constants`` bank 0."""

    special: dict[str, int]
    constants: bytes
    shared: dict[int, int]
    slots: list[Value] = field(default_factory=lambda: [None] * SLOTS)
    calls: list[int] = field(default_factory=list)
    meetings: dict[str, int] = field(default_factory=dict)  # where lanes meet again, by barrier register
    ended: bool = False


def s32(v: int) -> int:
    v &= M32
    return v - (1 << 32) if v >> 31 else v


def s64(v: int) -> int:
    return v - (1 << 64) if v >> 63 else v


def as_float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & M32))[0]


def float_bits(v: float) -> int:
    return struct.unpack("<I", struct.pack("<f", v))[0]


def slot(name: str) -> int | None:
    """Where a register lies; None for the ones that are fixed."""
    kind, number = re.match(r"(UR|UP|R|P)(\d+)", name).groups() if name not in FIXED else (None, None)
    return None if kind is None else BASES[kind] + int(number)


def reader(text: str, wide: bool = False) -> Callable[[Lane], Value]:
    """How an operand is read: a register, a pair of them, a constant, or an immediate."""
    if match := CONSTANT.search(text):
        sign, register, offset = match[1], match[2], int(match[3] or "0", 16)
        size = 8 if wide else 4
        index = slot(register) if register else None

        def constant(lane: Lane) -> Value:
            at = offset + (lane.slots[index] or 0 if index is not None else 0)
            raw = lane.constants[at : at + size]
            return changed(sign, int.from_bytes(raw, "little")) if len(raw) == size else None

        return constant
    if (match := REGISTER.match(text)) and match[2] != "SR":
        sign, name = match[1], match[2] + match[3]
        if name in FIXED:
            value = changed(sign, FIXED[name])
            return lambda lane: value
        index = slot(name)
        if wide:

            def pair(lane: Lane) -> Value:
                low, high = lane.slots[index], lane.slots[index + 1]
                return None if low is None or high is None else low | high << 32

            return pair
        if not sign:
            return lambda lane: lane.slots[index]

        def signed(lane: Lane) -> Value:
            value = lane.slots[index]
            return None if value is None else changed(sign, value)

        return signed
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        value = int(text, 16) & (M64 if wide else M32)
        return lambda lane: value
    try:
        value = float_bits(float(text.replace("INF", "inf").replace("QNAN", "nan")))
    except (ValueError, OverflowError):
        return lambda lane: None
    return lambda lane: value


def changed(sign: str, v: Value) -> Value:
    """A minus leaves 33 bits: an addition takes its carry from the last."""
    if "!" in sign:
        return not v
    if "~" in sign:
        v = ~v & M32
    if "|" in sign:
        v = abs(s32(v))
    return (1 << 32) - v if "-" in sign and v is not True and v is not False else v


def after(register: str) -> str:
    """The register behind this one."""
    if register in FIXED:
        return register
    kind, number = re.match(r"(UR|R)(\d+)", register).groups()
    return f"{kind}{int(number) + 1}"


ADDRESS = re.compile(r"\[(.*)\]")


def address(text: str) -> Callable[[Lane], Value]:
    """Of shared memory: the sum of registers and an offset between the brackets."""
    terms = []
    for term in ADDRESS.search(text)[1].replace("+-", "+ -").split("+"):
        scaled = re.match(r"\s*(U?R\d+)\.X(\d+)", term)
        terms.append((reader(scaled[1]), int(scaled[2])) if scaled else (reader(term.strip()), 1))

    def sum_up(lane: Lane) -> Value:
        values = [read(lane) for read, _ in terms]
        if None in values:
            return None
        return sum(v * scale for v, (_, scale) in zip(values, terms, strict=True)) & M32

    return sum_up


BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def bytes_of(name: str) -> int:
    return next((BYTES[part] for part in name.split(".")[1:] if part in BYTES), 4)


def both(a: Value, b: Value, how: str) -> Value:
    """AND, OR or XOR of what may be unknown."""
    decided = {"AND": False, "OR": True}.get(how)
    if decided is not None and (a is decided or b is decided):
        return decided
    if a is None or b is None:
        return None
    return bool(a) != bool(b) if how == "XOR" else not decided


def look_up(table: int, a: Value, b: Value, c: Value) -> Value:
    """A PLOP3: what all values that the unknown may have agree on."""
    found = {
        table >> (x << 2 | y << 1 | z) & 1
        for x in ((0, 1) if a is None else (int(a),))
        for y in ((0, 1) if b is None else (int(b),))
        for z in ((0, 1) if c is None else (int(c),))
    }
    return bool(found.pop()) if len(found) == 1 else None


def lop3(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result & M32


def shift(name: str, low: int, count: int, high: int) -> int:
    parts = name.split(".")
    both_words, count = (high & M32) << 32 | low & M32, min(count & 0xFF, 64)
    if parts[1] == "L":
        moved = both_words << count
        return (moved >> 32 if "HI" in parts else moved) & M32
    if "HI" in parts:
        return ((s32(high) if "S32" in parts else high & M32) >> min(count, 32)) & M32
    return (s64(both_words) if "S64" in parts else both_words) >> count & M32


COMPARISONS = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def compare(name: str, a: int, b: int, lower: bool | None) -> bool | None:
    parts = name.split(".")
    a, b = (a & M32, b & M32) if "U32" in parts else (s32(a), s32(b))
    if "EX" in parts and a == b:  # high words; the low ones decide
        return lower
    return COMPARISONS[parts[1]](a, b)


def to_float_up(v: int) -> int:
    bits = float_bits(float(v))
    return bits + 1 if as_float(bits) < v else bits


def half_bits(v: int) -> int:
    return int.from_bytes(struct.pack("<e", as_float(v)), "little")


def permuted(a: int, selector: int, c: int) -> int:
    """A PRMT without sign replication."""
    source = (a & M32) | (c & M32) << 32
    return sum((source >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4))
