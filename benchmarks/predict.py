"""``python -m benchmarks.predict [--check]``: what the CUDA kernels should take on an H200, unseen.

Takes the clocks that were counted in the kernels' machine code (tests/cuda/clocks.json; `make cuda
BUDGET=--update` counts them again) for the busiest multiprocessor, counts bytes, and turns both into time
with the constants below; writes benchmarks/results/h200-predicted.md. A prediction exists to be contradicted:
a measurement in benchmarks/results/nvidia-h200.json stands beside it. ``--check`` compares the file.
"""

import argparse
import json
import math
from dataclasses import dataclass

from .cases import OURS
from .gpu.cases import PRECISIONS, Case, Sizes, registry
from .record import RESULTS, ROOT, write_text

# ---- the device
SMS = 132  # datasheet, H200 SXM
CLOCK = 1.83e9  # Hz; at it the datasheet's 989 TFLOP/s are 4096 FLOP per clock and SM
COPY = 4.3e12  # bytes read and written per second, measured on such a device by a device-to-device copy
PER_SM = COPY / SMS / CLOCK  # bytes per clock
L2 = 5.5e12  # bytes per second in and out of L2; a reading of an H100 by others, taken over
L2_KEEPS = 30e6  # bytes that one kernel leaves there for the next: half of it, an assumption

# ---- the kernels
COUNTED = json.loads((ROOT.parent / "tests" / "cuda" / "clocks.json").read_text())
COUNTED_TILE = 64  # positions
FEW_CLUSTERS = 32  # for which there are kernels of their own
MOST_DIMENSIONS = 512  # summed up by a block for K <= 64; what csrc/cuda/aggregate_tiling.h takes for them
PAIR_QUERIES = 128  # of a tile of pairs, and its images below, as csrc/cuda/similarity_pairs.cuh has them
MMA_SYNC = 0.625  # of the rate of wgmma, as tests/cuda/walk.py counts HMMA
TENSOR_CORES = 4096  # FLOP per clock and SM, bfloat16, by wgmma alone
LAUNCH = 2.0e-6  # s per kernel in a graph, ramp and tail included; an assumption
STREAM = 0.85  # of the copy rate, for kernels that only read and add; an assumption


@dataclass(frozen=True)
class Kernel:
    """Predicted seconds of one launch, and of each thing that could limit it."""

    name: str
    counted: float = 0.0  # of the busiest multiprocessor, as if memory were never late
    memory: float = 0.0
    other: float = 0.0  # launch, and what precedes the first tile
    stages: int = 2  # with one, nothing is computed while a tile is on its way

    @property
    def seconds(self) -> float:
        longest = self.memory + self.counted if self.stages == 1 else max(self.memory, self.counted)
        return longest + self.other

    @property
    def limit(self) -> str:
        parts = {"instructions": self.counted, "memory": self.memory, "launch": self.other}
        return max(parts, key=parts.__getitem__)


def clocks_of(
    direction: str, precision: str, planes: bool, dim: int, clusters: int, parts: int, given: bool
) -> dict:
    """Clocks of a tile, a unit and the start: counted, or in bfloat16 and scaled like the plain problem's."""
    kind = (
        "given logits" if given
        else "few clusters" if clusters <= FEW_CLUSTERS
        else "long features" if dim > MOST_DIMENSIONS
        else "quarters" if parts == 4
        else "planes" if planes
        else "features"
    )  # fmt: skip
    plain = "planes" if kind in ("planes", "quarters") else "features"
    if found := COUNTED.get(f"{precision} {kind}: {direction}"):
        return found
    same, half, half_plain = (
        COUNTED[f"{name}: {direction}"] for name in (f"{precision} {plain}", f"bf16 {kind}", f"bf16 {plain}")
    )
    return {part: max(0.0, same[part] * half[part] / half_plain[part]) for part in same}


def splits_of(groups: int, tiles: int, wide: int) -> int:
    """Units that the tiles of one image are cut into, as csrc/cuda/aggregate_tiling.h chooses them."""

    def cost(splits: int) -> int:
        return math.ceil(groups * splits / wide) * (math.ceil(tiles / splits) + 2) * 64 + splits

    return min(range(1, min(tiles, 64) + 1), key=cost)


def stream(name: str, moved: float, kept: float = 0.0, alone: float = 0.0) -> Kernel:
    """A kernel that only reads and adds; ``kept`` of its bytes lie in L2, its last block moves ``alone``."""
    memory = moved / (COPY * STREAM) + kept / kept_rate(kept)
    return Kernel(name, memory=memory, other=LAUNCH + alone / (L2 / SMS))


def kept_rate(size: float) -> float:
    return L2 if size <= L2_KEEPS else COPY * STREAM


def tile_of(direction: str, element: int, chunks: int, given: bool) -> tuple[int, int]:
    """Positions and stages that fit shared memory for K = 64, as csrc/cuda/aggregate_tiling.h finds them."""
    forward = direction == "forward"
    if given:
        return (64, 2) if element == 2 else (32, 2)
    if chunks > 1:
        return {2: (64, 2), 4: (16, 1)}[element] if forward else {2: (16, 1), 4: (32, 2)}[element]
    return {2: (64, 2), 4: (32, 1)}[element] if forward else {2: (32, 2), 4: (16, 2)}[element]


def aggregation(
    direction: str, precision: str, batch: int, dim: int, positions: int, clusters: int, *, parts: int = 1,
    logits: int | None = None, given: bool = False, planes: bool = True,
) -> list[Kernel]:  # fmt: skip
    """One aggregation: the tile kernel, and what has to be done before and after it."""
    element = PRECISIONS[precision][0].itemsize
    columns = math.ceil((logits or clusters) / 32) * 32
    chunks = math.ceil(dim / MOST_DIMENSIONS)
    tile, stages = tile_of(direction, element, chunks, given)
    groups, per_group = batch * parts, math.ceil(math.ceil(positions / parts) / tile)
    wide = SMS // chunks
    splits = splits_of(groups, per_group, wide)
    units = groups * splits
    busy = min(units, wide) * chunks
    each = clocks_of(direction, precision, planes, dim, clusters, parts, given)
    tiles_of_unit, units_of_block = math.ceil(per_group / splits), math.ceil(units / wide)
    x_bytes, directions = tile * dim * element, 2 if direction == "backward" else 1
    weight = (not given) * columns * dim * element + (direction == "backward") * clusters * dim * element
    moved = (x_bytes * directions + given * tile * columns * 4) / chunks / (PER_SM * SMS / busy)
    results, sums = groups * clusters * dim * element, busy / chunks * columns * dim * 4
    norms = parts == 1
    spent = precision == "fp32" and clusters > 32  # no registers are left to finish a group in the block
    split = direction == "forward" and (splits > 1 or spent or (chunks > 1 and norms))
    left = units * clusters * dim * 4 if split else sums if direction == "backward" and not given else 0.0
    written = left / kept_rate(left) + (results / COPY if direction == "forward" and not split else 0.0)
    # What is left for other kernels to add up is written at once.
    unit = COUNTED["bf16 long features: forward"]["unit"] if split else each["unit"]
    clocks = units_of_block * (tiles_of_unit * each["tile"] * tile / COUNTED_TILE + unit)
    tiles = Kernel(
        f"aggregate {direction}",
        counted=clocks / CLOCK,
        memory=units_of_block * tiles_of_unit * moved / CLOCK,
        other=LAUNCH + max(each["start"] / CLOCK, busy * weight / L2) + written,
        stages=stages,
    )
    if direction == "backward":
        dots = [stream("products of gradients and results", 2 * results)] if norms else []
        passed = stream("gradients through the norms", results, kept=(2 if norms else 1) * results)
        return [*dots, passed, tiles, stream("add blocks", results, kept=left)]
    if not split:
        return [tiles]
    # The last block of a group normalises what the others have added up.
    added = norms * clusters * dim * 4
    alone = norms * clusters * dim * (4 + element)
    return [tiles, stream("add units", results, kept=left + 2 * groups * added, alone=alone)]


def pairs(precision: str, s: dict) -> Kernel:
    """All pairs: tiles whose clusters blocks share, as csrc/cuda/similarity_all_pairs.cu has it."""
    each, images = COUNTED[f"{precision} pairs: forward"], 24 if precision == "bf16" else 16
    tiles = math.ceil(s["Q"] / PAIR_QUERIES) * math.ceil(s["N"] / images)

    def clusters_of_block(splits: int) -> int:
        return math.ceil(s["K"] / splits)

    def rounds(splits: int) -> float:
        return math.ceil(tiles * splits / SMS) * clusters_of_block(splits) * (1 + 0.02 * splits)

    allowed = (n for n in range(1, s["K"] + 1) if n == 1 or n * tiles <= 8 * SMS)
    splits = min(allowed, key=rounds)
    clocks = math.ceil(tiles * splits / SMS) * (clusters_of_block(splits) * each["tile"] + each["start"])
    quarters = 4 * s["N"] * s["K"] * s["D"] * PRECISIONS[precision][0].itemsize
    return Kernel("pairs", counted=clocks / CLOCK, memory=quarters / COPY, other=LAUNCH)


def predicted(case: Case) -> list[Kernel]:
    """Our kernels of a case, those of torch around them included where they are a part of it."""
    s, precision = case.shapes, case.precision
    element = PRECISIONS[precision][0].itemsize
    both = ("forward", "backward") if case.backward else ("forward",)
    if case.name.startswith("all-pairs"):
        return [stream("norms", 4 * s["N"] * s["K"] * s["D"] * element), pairs(precision, s)]
    if case.name.startswith("region-step"):
        maps = dict(dim=s["D"], positions=s["H"] * s["W"], clusters=s["K"])
        quarters = element * 4 * s["G"] * s["K"] * s["D"]
        kernels = [
            k
            for direction in both
            for batch, parts in ((1, 1), (s["G"], 4))
            for k in aggregation(direction, precision, batch, **maps, parts=parts)
        ]
        return [*kernels, stream("similarity forward", quarters), stream("similarity backward", 2 * quarters)]
    if case.name.startswith("kernelbench"):
        columns, x = s["K"] + s["G"], s["B"] * s["N"] * s["D"] * element
        video = dict(batch=s["B"], dim=s["D"], positions=s["N"], clusters=s["K"], logits=columns)
        if not s["training"]:
            return aggregation("forward", precision, **video, planes=False)
        logits = s["B"] * s["N"] * columns * 4
        passes = {"forward": 1, "backward": 2}  # over x by torch's products: logits; their gradients' two
        kernels = [stream(f"torch: batch norm, {d}", 3 * logits) for d in both]
        kernels += [stream(f"torch: products of logits, {d}", passes[d] * (x + logits)) for d in both]
        return [*kernels, *(k for d in both for k in aggregation(d, precision, **video, given=True))]
    maps = dict(batch=s["B"], dim=s["D"], positions=s["H"] * s["W"], clusters=s["K"], parts=s["parts"])
    maps["planes"] = s["layout"] == "planes" and s["H"] != s["W"]  # tokens are as wide as high
    return [k for d in both for k in aggregation(d, precision, **maps)]


def measured() -> dict[str, float]:
    path = RESULTS / "nvidia-h200.json"
    if not path.exists():
        return {}
    results = json.loads(path.read_text())["results"]
    return {n: r[OURS]["device"]["median"] for n, r in results.items() if "device" in r.get(OURS, {})}


def wgmma() -> str:
    """Say what the forward in bfloat16 could gain by the instructions of sm_90a."""
    case = registry(Sizes())["netvlad-forward-B64-bf16"]
    kernels, dim, clusters = predicted(case), case.shapes["D"], case.shapes["K"]
    floor = 2 * 2 * COUNTED_TILE * dim * clusters // TENSOR_CORES
    tile = COUNTED["bf16 planes: forward"]["tile"]
    now = sum(k.seconds for k in kernels)
    products = round(floor / MMA_SYNC)
    gain = kernels[0].counted * (products - floor) / tile
    return (
        "wgmma (sm_90a) in place of `mma.sync`, in the forward in bfloat16: the two products of "
        f"{COUNTED_TILE} positions with D = {dim}, K = {clusters} need {floor:,} clocks at the datasheet's "
        f"rate and {products:,} at that of `mma.sync`, of the {tile:,} clocks of a tile, in which both run "
        "side by side with everything else. The difference is all that wgmma could save where products alone "
        f"hold a tile up: of the first line's {now * 1e6:.0f} us at most {gain * 1e6:.0f}."
    )


def page() -> str:
    found = measured()
    lines = [
        "# NVIDIA H200: a prediction, not a measurement",
        "",
        "Every time was computed by `python -m benchmarks.predict`, with the constants at the top of "
        "`benchmarks/predict.py` and their sources; only the column `measured` is of a device. Kernels: the "
        "three that take longest, in microseconds, with what should limit them. Floor: least bytes at the "
        "copy rate.",
        "",
        "Instructions are those of the busiest multiprocessor: clocks counted in the machine code for sm_90 "
        "(`tests/cuda/walk.py`), from the stalls and scoreboards that ptxas wrote and assumed latencies that "
        "may be wrong by 30 %. Left out are bank conflicts, misses of the instruction cache, lanes of a warp "
        "that go different ways, and blocks that wait for each other's memory traffic; all of it makes "
        "kernels slower. Memory is counted at the rate of a large copy; kernels of torch, and ours that only "
        "read and add, by their bytes alone. Quarters in float32 and TF32, and the backward of given logits "
        "in TF32, are scaled from what was counted in bfloat16.",
        "",
        wgmma(),
        "",
        "| computation | precision | predicted us | of the floor | kernels | measured us |",
        "|---|---|---|---|---|---|",
    ]
    for case in registry(Sizes()).values():
        kernels = predicted(case)
        total = sum(k.seconds for k in kernels)
        longest = sorted(kernels, key=lambda k: -k.seconds)[:3]
        parts = "; ".join(f"{k.name} {k.seconds * 1e6:.1f} ({k.limit})" for k in longest)
        took = f"{found[case.name]:.1f}" if case.name in found else ""
        floor = f"{100 * case.bytes / COPY / total:.0f} %"
        lines.append(f"| {case.about} | {case.precision} | {total * 1e6:.1f} | {floor} | {parts} | {took} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--check", action="store_true")
    target, text = RESULTS / "h200-predicted.md", page()
    if parser.parse_args().check:
        if target.read_text() != text:
            raise SystemExit(f"{target.name} is not what the model says; run `python -m benchmarks.predict`")
        return
    write_text(target, text)
    print(text)


if __name__ == "__main__":
    main()
