"""Machine code as nvdisasm writes it: instructions, the waits that ptxas chose, source lines.

nvdisasm and cuobjdump come with the CUDA toolkit or with the Python packages nvidia-cuda-nvdisasm and
nvidia-cuda-cuobjdump.
"""

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LINE = re.compile(r"\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
SECOND = re.compile(r"/\* 0x([0-9a-f]{16}) \*/")
LABEL = re.compile(r"([.$]\S+):$")
SOURCE = re.compile(r'\s*//## File "([^"]+)", line (\d+)')


def tool(name: str) -> str | None:
    """Path of nvdisasm or cuobjdump, None where it is not installed."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin"
    return shutil.which(name) or shutil.which(name, path=f"{packages}:/usr/local/cuda/bin")


def needed(who: str) -> None:
    """Leave the program if a tool is missing."""
    missing = [name for name in ("cuobjdump", "nvdisasm") if not tool(name)]
    if missing:
        packages = " ".join(f"nvidia-cuda-{name}" for name in missing)
        raise SystemExit(f"{who}: no {' and no '.join(missing)} here; pip install {packages}")


def extract(library: Path, folder: Path, architecture: str = "all") -> list[Path]:
    """The library's machine code, one file per source and architecture."""
    command = [tool("cuobjdump"), "-xelf", architecture, library.resolve()]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.glob("*.cubin"))


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        stall: clocks until the warp may issue the next one.
        sets, frees: scoreboards set until the result is there, until the operands were read; 7: none.
        waits: mask of scoreboards that have to be clear.
        where: source lines, the innermost first.
    """

    pc: int
    guard: str
    name: str
    operands: list[str]
    stall: int
    sets: int
    frees: int
    waits: int
    where: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self):
        self.base = self.name.split(".")[0]


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def disassemble(cubin: Path, *options: str) -> str:
    return subprocess.run(
        [tool("nvdisasm"), "-c", *options, str(cubin)], capture_output=True, text=True, check=True
    ).stdout


def operands_of(text: str) -> list[str]:
    return [o.strip().replace(".reuse", "") for o in re.split(r",(?![^\[]*\])", text) if o.strip()]


def parsed(pc: str, text: str, control: int) -> Instruction:
    guard = ""
    if text.startswith("@"):
        guard, text = text[1:].split(None, 1)
    name, _, rest = text.partition(" ")
    return Instruction(
        int(pc, 16), guard, name, operands_of(rest), control >> 41 & 15, control >> 46 & 7, control >> 49 & 7,
        control >> 52 & 63,
    )  # fmt: skip


def kernels(text: str) -> Iterator[Kernel]:
    """Kernels of ``nvdisasm -c -hex [-gi]``, by mangled name."""
    kernel, where, fresh = None, [], True
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(".text."):
            if kernel:
                yield kernel
            kernel, where = Kernel(line[6:].rstrip(":")), []
        elif kernel is None:
            continue
        elif match := SOURCE.match(line):
            where = [] if fresh else where
            fresh = False
            where.append((match[1], int(match[2])))
        elif match := LINE.match(line):
            control = int(SECOND.search(next(lines))[1], 16)
            instruction = parsed(match[1], match[2], control)
            instruction.where, fresh = list(where), True
            kernel.instructions.append(instruction)
        elif match := LABEL.match(line.strip()):
            kernel.labels[match[1]] = len(kernel.instructions)
    if kernel:
        yield kernel
