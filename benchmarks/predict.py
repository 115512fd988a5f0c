"""``python -m benchmarks.predict [--check]``: what the CUDA kernels should take on an H200, unseen.

Counts bytes, tensor-core instructions and shared-memory traffic of every kernel and turns them into time with
the constants below; writes benchmarks/results/h200-predicted.md. A prediction exists to be contradicted:
a measurement in benchmarks/results/nvidia-h200.json stands beside it. ``--check`` compares the file.
"""

import argparse
import json
import math
from dataclasses import dataclass

from .cases import OURS
from .gpu.cases import PRECISIONS, Case, Sizes, registry
from .record import RESULTS, write_text

# ---- the device
SMS = 132  # datasheet, H200 SXM
CLOCK = 1.83e9  # Hz; at it the datasheet's 989 TFLOP/s are 4096 FLOP per clock and SM
COPY = 4.3e12  # bytes read and written per second, measured on such a device by a device-to-device copy
PER_SM = COPY / SMS / CLOCK  # bytes per clock
L2 = 5.5e12  # bytes per second in and out of L2; a reading of an H100 by others, taken over
L2_KEEPS = 30e6  # bytes that one kernel leaves there for the next: half of it, an assumption
SHARED = 128  # bytes per clock and SM, CUDA programming guide: 32 banks of 4 bytes
# Clocks per SM of one mma.sync: m16n8k16 of 16-bit types, m16n8k8 of TF32. Published microbenchmarks of an
# H100 see mma.sync reach about 62 % of what wgmma does, which would be one clock.
MMA = 1.6
PAIR_FMA = 770  # per clock and SM; the estimate in csrc/cuda/similarity_pairs.cuh

# ---- the kernels
# Products that every block makes over all dimensions, and over those it sums up, per direction; and what
# remains of them if the logits are given.
PRODUCTS = {"forward": (1, 1), "backward": (2, 3)}
PRODUCTS_GIVEN = {"forward": (0, 1), "backward": (1, 1)}
MOST_DIMENSIONS = 512  # summed up by a block for K <= 64; what csrc/cuda/aggregate_tiling.h takes for them
# Shared-memory traffic per byte of x: 490 KB per forward tile of 64 KB; 512 KB and the tile in and out
# per backward tile of 32 KB. Counted for K = 64; more clusters cost in proportion.
TRAFFIC = {"forward": 490 / 64, "backward": (512 + 64) / 32}
OVERLAP = 1.25  # an assumption: the slowest of three streams hides the others but for a quarter
LAUNCH = 2.0e-6  # s per kernel in a graph, ramp and tail included; an assumption
STREAM = 0.85  # of the copy rate, for kernels that only read and add; an assumption


@dataclass(frozen=True)
class Kernel:
    """Predicted seconds of one launch, and of each thing that could limit it."""

    name: str
    tensor: float = 0.0
    shared: float = 0.0
    memory: float = 0.0
    other: float = 0.0  # prologue and launch
    stages: int = 2  # with one, nothing is computed while a tile is on its way

    @property
    def seconds(self) -> float:
        if not self.tensor:
            return self.memory + self.other
        if self.stages == 1:
            return self.memory + max(self.tensor, self.shared) * OVERLAP + self.other
        return max(self.tensor, self.shared, self.memory) * OVERLAP + self.other

    @property
    def limit(self) -> str:
        parts = {"tensor cores": self.tensor, "shared memory": self.shared, "memory": self.memory}
        name = max(parts, key=parts.__getitem__)
        return name if parts[name] > self.other else "launch and prologue"


def instructions(precision: str) -> float:
    """mma.sync per 16x8x16 product: TF32 takes half the depth at a time, exact float32 three products."""
    return {"bf16": 1, "tf32": 2, "fp32": 6}[precision]


def splits_of(groups: int, tiles: int, wide: int) -> int:
    """Units that the tiles of one image are cut into, as csrc/cuda/aggregate_tiling.h chooses them."""

    def cost(splits: int) -> int:
        return math.ceil(groups * splits / wide) * (math.ceil(tiles / splits) + 2) * 64 + splits

    return min(range(1, min(tiles, 64) + 1), key=cost)


def stream(name: str, moved: float, kept: float = 0.0) -> Kernel:
    """A kernel that only reads and adds; ``kept`` bytes of it were written by the one before."""
    return Kernel(name, memory=moved / (COPY * STREAM) + kept / kept_rate(kept), other=LAUNCH)


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
    direction: str, precision: str, batch: int, dim: int, positions: int, clusters: int, *, regions: int = 1,
    logits: int | None = None, given: bool = False,
) -> list[Kernel]:  # fmt: skip
    """One aggregation: the tile kernel, and what has to be done before and after it."""
    element = PRECISIONS[precision][0].itemsize
    columns = math.ceil((logits or clusters) / 32) * 32
    chunks = math.ceil(dim / MOST_DIMENSIONS)
    tile, stages = tile_of(direction, element, chunks, given)
    groups, per_group = batch * regions, math.ceil(math.ceil(positions / regions) / tile)
    wide = SMS // chunks
    splits = splits_of(groups, per_group, wide)
    units = groups * splits
    rounds = math.ceil(units / wide) * math.ceil(per_group / splits)  # tiles of the busiest SM
    busy = min(units, wide) * chunks
    over_all, over_own = (PRODUCTS_GIVEN if given else PRODUCTS)[direction]
    multiplied = over_all * dim + over_own * dim / chunks
    x_bytes, directions = tile * dim * element, 2 if direction == "backward" else 1
    weight = (not given) * columns * dim * element + (direction == "backward") * clusters * dim * element
    traffic = TRAFFIC[direction] * columns / 64 * multiplied / dim / sum(PRODUCTS[direction])
    clocks = {
        "tensor": (tile / 16) * (columns / 8) * (multiplied / 16) * instructions(precision) * MMA,
        "shared": x_bytes * traffic / SHARED,
        "memory": (x_bytes * directions + given * tile * columns * 4) / chunks / (PER_SM * SMS / busy),
    }
    results, sums = groups * clusters * dim * element, busy / chunks * columns * dim * 4
    norms = regions == 1
    spent = precision == "fp32" and clusters > 32  # no registers are left to finish a group in the block
    split = direction == "forward" and (splits > 1 or spent or (chunks > 1 and norms))
    left = units * clusters * dim * 4 if split else sums if direction == "backward" and not given else 0.0
    written = left / kept_rate(left) + (results / COPY if direction == "forward" and not split else 0.0)
    tiles = Kernel(
        f"aggregate {direction}",
        **{name: rounds * value / CLOCK for name, value in clocks.items()},
        other=LAUNCH + busy * weight / L2 + written,
        stages=stages,
    )
    if direction == "backward":
        dots = [stream("products of gradients and results", 2 * results)] if norms else []
        passed = stream("gradients through the norms", results, kept=(2 if norms else 1) * results)
        return [*dots, passed, tiles, stream("add blocks", results, kept=left)]
    after = [stream("add units", results, kept=left)] if split else []
    return [tiles, *after, *([stream("normalise", results, kept=results)] if split and norms else [])]


def predicted(case: Case) -> list[Kernel]:
    """Our kernels of a case, those of torch around them included where they are a part of it."""
    s, precision = case.shapes, case.precision
    element = PRECISIONS[precision][0].itemsize
    both = ("forward", "backward") if case.backward else ("forward",)
    if case.name.startswith("all-pairs"):
        quarters = 4 * s["N"] * s["K"] * s["D"]
        fma = quarters * math.ceil(s["Q"] / 128) * 128 * instructions(precision)  # tiles of 128 queries
        return [
            stream("norms", quarters * element),
            Kernel(
                "pairs", tensor=fma / (PAIR_FMA * SMS * CLOCK), memory=quarters * element / COPY, other=LAUNCH
            ),
        ]
    if case.name.startswith("region-step"):
        maps = dict(dim=s["D"], positions=s["H"] * s["W"], clusters=s["K"])
        quarters = element * 4 * s["G"] * s["K"] * s["D"]
        kernels = [
            k
            for direction in both
            for batch, regions in ((1, 1), (s["G"], 4))
            for k in aggregation(direction, precision, batch, **maps, regions=regions)
        ]
        return [*kernels, stream("similarity forward", quarters), stream("similarity backward", 2 * quarters)]
    if case.name.startswith("kernelbench"):
        columns, x = s["K"] + s["G"], s["B"] * s["N"] * s["D"] * element
        logits = s["B"] * s["N"] * columns * 4
        passes = {"forward": 1, "backward": 2}  # over x by torch's products: logits; their gradients' two
        kernels = [stream(f"torch: batch norm, {d}", 3 * logits) for d in both]
        kernels += [stream(f"torch: products of logits, {d}", passes[d] * (x + logits)) for d in both]
        video = dict(batch=s["B"], dim=s["D"], positions=s["N"], clusters=s["K"], logits=columns, given=True)
        return [*kernels, *(k for d in both for k in aggregation(d, precision, **video))]
    maps = dict(batch=s["B"], dim=s["D"], positions=s["H"] * s["W"], clusters=s["K"], regions=s["regions"])
    return [k for d in both for k in aggregation(d, precision, **maps)]


def measured() -> dict[str, float]:
    path = RESULTS / "nvidia-h200.json"
    if not path.exists():
        return {}
    results = json.loads(path.read_text())["results"]
    return {n: r[OURS]["device"]["median"] for n, r in results.items() if "device" in r.get(OURS, {})}


def page() -> str:
    found = measured()
    lines = [
        "# NVIDIA H200: a prediction, not a measurement",
        "",
        "Every time was computed by `python -m benchmarks.predict` from counted bytes, tensor-core "
        "instructions and shared-memory traffic, with the constants at the top of `benchmarks/predict.py` "
        "and their sources; only the column `measured` is of a device. Kernels: the three that take "
        "longest, in microseconds, with what should limit them. Floor: least bytes at the copy rate.",
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
