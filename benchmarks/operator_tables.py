"""Tables of the recorded operators: in short, every peer, and what was reached of the goals."""

from . import goals, kernel_steps, roof
from .cases import CASES, OURS
from .record import processor

UNITS = (
    "Median milliseconds per image (regions and similarities: per call) with the default malloc / with one "
    "that keeps the heap"
)


SUMMARISED = (
    "netvlad-forward",
    "netvlad-forward-backward",
    "netvlad-forward-bfloat16",
    "region-step",
    "all-pairs",
)
"""Cases in the README."""


def head(recorded: dict) -> str:
    machine = recorded["machine"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']} kernels, "
        f"torch {machine['torch']}, commit {machine['commit']}, {machine['date']}: `{machine['command']}`."
    )


def megabytes(peak: int | None) -> str:
    return "" if peak is None else f"{peak / 1e6:,.0f} MB"


def both(result: dict, peer: str) -> str:
    """Milliseconds with both mallocs."""
    return " / ".join(f"{ms:.2f}" for ms in goals.milliseconds(result, peer)) + " ms"


def ratios(result: dict, peer: str) -> str:
    pairs = zip(goals.milliseconds(result, peer), goals.milliseconds(result, OURS), strict=True)
    return " / ".join(f"{theirs / ours:.1f}x" for theirs, ours in pairs)


def summary(recorded: dict) -> str:
    """A few cases: ours, and the fastest peer with and without ``torch.compile``."""
    machine = recorded["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']} kernels, commit "
        f"{machine['commit']}: `{machine['command']}`. Median, and how many times longer the fastest peers "
        "take.",
        "",
        f"| computation | `{OURS}` | torch.compile | eager |",
        "|---|---|---|---|",
    ]
    for result in recorded["results"]:
        if result["case"] not in SUMMARISED:
            continue
        peers = (goals.fastest(result, OURS, compiled=compiled) for compiled in (True, False))
        cells = [result["about"], f"**{first(both(result, OURS))} ms**"]
        cells += ["" if peer is None else first(ratios(result, peer)) for peer in peers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def first(figures: str) -> str:
    """The figure with the default malloc, of two."""
    return figures.split(" / ")[0]


def peers(recorded: dict) -> str:
    """One row per case and peer."""
    lines = [
        f"{head(recorded)} {UNITS}; how many times longer than `{OURS}`; how far resident memory grows "
        "during a call, with what a peer keeps between calls; largest error against float64.",
        "",
        f"![Time of every peer and ours](plots/{processor(recorded['machine'])}/peers.png)",
        "",
        "| computation | | time | | memory | error |",
        "|---|---|---|---|---|---|",
    ]
    for result in recorded["results"]:
        peak, times = result["peak_bytes"], next(iter(result["times"].values()))
        about = result["about"]
        for peer in sorted(times, key=lambda p: (p != OURS, goals.least_ratio(result, OURS, p))):
            name, time = (
                (f"`{peer}`", f"**{both(result, peer)}**") if peer == OURS else (peer, both(result, peer))
            )
            ratio = "" if peer == OURS else ratios(result, peer)
            error = f"{times[peer]['error']:.0e}"
            lines.append(f"| {about} | {name} | {time} | {ratio} | {megabytes(peak[peer])} | {error} |")
            about = ""
    return "\n".join(lines)


def goals_table(recorded: dict) -> str:
    """One row per goal, with the share of the arithmetic peak; cases without a goal show that share alone."""
    machine, results = recorded["machine"], {result["case"]: result for result in recorded["results"]}
    measured = machine.get("roof")
    lines = [
        f"{head(recorded)} {roof.sentence(measured, machine['threads'])}",
        "",
    ]
    if "flops_per_second" in (measured or {}):
        picture = f"plots/{processor(machine)}/roofline.png"
        lines += [f"![Roofline of this machine, ours and the fastest peer]({picture})", ""]
    lines += [
        "| computation | goal | measured | met | at the peak it were | as fast as its steps | of the float32 "
        "peak, best call |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        result = results.get(name)
        if result is None or result["shapes"] != case.shapes:
            lines.append(f"| {case.about} | | not recorded yet | | | | |")
            continue
        share = goals.peak_share(result, OURS, measured)
        of_peak = "" if share is None else f"{100 * share:.0f} %"
        about, steps_ms = case.about, kernel_steps.milliseconds(case, result["threads"], processor(machine))
        found = list(goals.rows(case.goals, result, OURS, measured, steps_ms))
        for row in found or [goals.Row("", "", None)]:
            met = {True: "yes", False: "**no**", None: ""}[row.met]
            met += f", beyond {row.beyond}" if row.beyond else ""
            limits = f"{row.limit} | {row.pace}"
            lines.append(f"| {about} | {row.goal} | {row.measured} | {met} | {limits} | {of_peak} |")
            about = of_peak = ""
    return "\n".join(lines)
