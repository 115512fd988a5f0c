"""``python tests/cuda/census.py BUILD [--update]``: which instructions the kernels are made of, everywhere.

Compilers drop code without a word, and what runs in the emulator never passed through them. Counts of every
kernel of the library below ``BUILD``, on every architecture, what moves memory and what multiplies, and holds
it against ``census.json``: a kind of instruction that is gone, is new, or is down to less than half, a kernel
that writes nothing, and one that uses local memory fail. ``--update`` writes the census as it is now.
"""

import argparse
import json
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sass
from budget import readable

RECORD = Path(__file__).with_name("census.json")
# The lowest 12 bits of an instruction, from sm_80 to sm_120; nvdisasm confirms them for a file of each.
CODES = {
    "HMMA": (0x23C,), "DMMA": (0x23F,), "LDSM": (0x83B,), "LDGSTS": (0xFAE,), "LDG": (0x981,),
    "LDS": (0x984,), "STS": (0x388, 0x988), "STG": (0x386, 0x986), "BAR": (0xB1D,), "SHFL": (0x389, 0xF89),
    "MUFU": (0x308, 0x908, 0xD08), "LDL": (0x983,), "STL": (0x387, 0x987),
}  # fmt: skip
KIND_OF = {code: kind for kind, codes in CODES.items() for code in codes}
LOCAL, STORE = ("LDL", "STL"), "STG"
LINE = re.compile(rf"\s+/\*[0-9a-f]{{4,6}}\*/\s+(?:@!?U?P\w\s+)?({'|'.join(CODES)})\b")
CONFIRMED_FROM = 200_000  # bytes of a file that is worth nvdisasm's look
Census = dict[str, dict[str, dict[str, int]]]  # kernel, architecture, kind


def kernels(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and machine code of the kernels in an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + n * size) for n in range(count)]
    for name, _, _, _, offset, length in sections:
        at = sections[names][4] + name
        text = cubin[at : cubin.index(b"\0", at)].decode()
        if text.startswith(".text."):
            yield text.removeprefix(".text."), cubin[offset : offset + length]


def counted(code: bytes) -> Counter:
    """Instructions, 16 bytes each, by kind."""
    codes, many = np.unique(np.frombuffer(code, "<u8")[::2] & 0xFFF, return_counts=True)
    kinds: Counter = Counter()
    for value, count in zip(codes.tolist(), many.tolist(), strict=True):
        if value in KIND_OF:
            kinds[KIND_OF[value]] += count
    return kinds


def confirm(cubin: Path, architecture: str, found: Counter) -> None:
    lines = sass.disassemble(cubin).splitlines()
    said = Counter(match[1] for match in map(LINE.match, lines) if match)
    if said != found:
        raise SystemExit(f"census: nvdisasm counts {said} in a file for {architecture}, this {found}")


def census(library: Path) -> Census:
    found: dict[str, dict[str, Counter]] = {}
    confirmed = set()
    with tempfile.TemporaryDirectory() as folder:
        for cubin in sorted(sass.extract(library, Path(folder)), key=lambda path: path.stat().st_size):
            architecture, total = re.search(r"\.(sm_\d+)\.cubin$", cubin.name)[1], Counter()
            for kernel, code in kernels(cubin.read_bytes()):
                found.setdefault(kernel, {})[architecture] = kinds = counted(code)
                total += kinds
            if architecture not in confirmed and cubin.stat().st_size > CONFIRMED_FROM:
                confirmed.add(architecture)
                confirm(cubin, architecture, total)
    names = readable(sorted(found))
    return {names[kernel]: ordered(found[kernel]) for kernel in sorted(found, key=names.__getitem__)}


def ordered(architectures: dict[str, Counter]) -> dict[str, dict[str, int]]:
    """By architecture, oldest first, and kind."""
    oldest_first = sorted(architectures, key=lambda name: int(name[3:]))
    return {
        a: {kind: architectures[a][kind] for kind in CODES if architectures[a][kind]} for a in oldest_first
    }


def compared(now: Census, before: Census) -> list[str]:
    """What is wrong, in words."""
    faults = [
        f"{kernel}: in the census, but there is no such kernel" for kernel in before.keys() - now.keys()
    ]
    for kernel, architectures in now.items():
        for architecture, kinds in architectures.items():
            where, recorded = f"{kernel} on {architecture}", before.get(kernel, {}).get(architecture)
            faults += [f"{where}: {kinds[kind]} {kind}: local memory" for kind in LOCAL if kind in kinds]
            if STORE not in kinds:
                faults.append(f"{where}: writes nothing")
            if recorded is None:
                faults.append(f"{where}: not in the census")
                continue
            for kind in CODES:
                count, was = kinds.get(kind, 0), recorded.get(kind, 0)
                if 2 * count < was or (count and not was):
                    faults.append(f"{where}: {count} {kind}, {was} in the census")
    return sorted(faults)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, help="folder with the library")
    parser.add_argument("--update", action="store_true", help="write the census as it is now")
    arguments = parser.parse_args()
    sass.needed("census")
    now = census(next(arguments.build.glob("_C_cuda.*.so")))
    if arguments.update:
        lines = ",\n".join(f" {json.dumps(kernel)}: {json.dumps(by)}" for kernel, by in now.items())
        RECORD.write_text(f"{{\n{lines}\n}}\n")
    faults = compared(now, json.loads(RECORD.read_text()))
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"census of {len(now)} kernels: {len(faults) or 'no'} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
