"""``python tests/cuda/limits.py RAW OUT``: what limits each kernel, from the raw page of ncu as CSV.

Writes one line per launch: its time, how busy memory, caches, tensor cores and issue slots were, how many
warps there were, and the busiest of the units. What this ncu or GPU does not count stays empty.
"""

import csv
import re
import sys
from pathlib import Path

from budget import shorten

# name in the table -> pattern of ncu's column; several matches count as their largest
UNITS = {
    "DRAM %": r"dram__throughput.*pct_of_peak_sustained_elapsed$",
    "L2 %": r"lts__throughput.*pct_of_peak_sustained_elapsed$",
    "L1 %": r"l1tex__throughput.*pct_of_peak_sustained_active$",
    "tensor %": r"sm__(inst_executed_)?pipe_tensor.*pct_of_peak_sustained_active$",
    "issue %": r"sm__inst_(issued|executed)\.avg\.pct_of_peak_sustained_(active|elapsed)$",
}
OTHERS = {
    "occupancy %": r"sm__warps_active\.avg\.pct_of_peak_sustained_active$",
    "registers": r"launch__registers_per_thread$",
    "shared bytes": r"launch__shared_mem_per_block_dynamic$",
}
TIME = r"gpu__time_duration\.sum$"
MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def largest(row: dict[str, str], pattern: str) -> float | None:
    values = (text.replace(",", "") for name, text in row.items() if name and re.search(pattern, name))
    return max((float(v) for v in values if re.fullmatch(r"[\d.]+(e[+-]?\d+)?", v)), default=None)


def summary(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of the rows of the raw page, the first of which holds the units."""
    units, *launches = rows
    lines = []
    for launch in launches:
        busy = {name: largest(launch, pattern) for name, pattern in UNITS.items()}
        known = {name: value for name, value in busy.items() if value is not None}
        time = next((name for name in launch if name and re.search(TIME, name)), None)
        scale = MICROSECONDS.get(units[time], 1.0) if time else 1.0
        numbers = busy | {name: largest(launch, pattern) for name, pattern in OTHERS.items()}
        lines.append(
            {
                "kernel": shorten(launch["Kernel Name"]),
                "grid": launch.get("Grid Size", ""),
                "microseconds": f"{largest(launch, TIME) * scale:.1f}" if time else "",
                **{name: "" if value is None else f"{value:.1f}" for name, value in numbers.items()},
                "limit": max(known, key=known.get).removesuffix(" %") if known else "",
            }
        )
    return lines


def main(raw: Path, out: Path) -> None:
    text = raw.read_text().splitlines(keepends=True)
    start = next((i for i, line in enumerate(text) if line.startswith('"ID"')), None)
    if start is None:
        raise SystemExit(f"{raw} holds no launch; ncu said: {''.join(text[-5:]).strip()}")
    lines = summary(list(csv.DictReader(text[start:])))
    if not lines:
        raise SystemExit(f"{raw} holds no launch")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(f"wrote {out}: {len(lines)} launches")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
