"""The figures of one run as a page: per case what ours takes, how far from the floor, and every peer."""

from ..cases import OURS


def _rate(value: float, unit: str) -> str:
    return f"{value / 1e12:.2f} T{unit}/s"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"


def _microseconds(times: dict) -> str:
    return f"{times['median']:.1f} ({times['low']:.1f}-{times['high']:.1f})"


def _rows(name: str, result: dict, ceilings: dict) -> list[str]:
    case, ours = result["case"], result.get(OURS, {})
    mine = ours.get("device", {}).get("median")
    copy, products = ceilings["copy_bytes_per_second"], ceilings[f"{case['precision']}_flops_per_second"]
    rows = []
    for contender, record in result.items():
        if contender == "case":
            continue
        cells = [f"{case['about']}" if contender == OURS else "", case["precision"], contender]
        if record["status"] != "measured":
            error = record.get("error") or ", ".join(f"{e:.1e}" for e in record.get("errors", ()))
            text = f"{record['status']}{': ' + error if error else ''}".replace("|", "/")
            rows.append(f"| {' | '.join(cells)} | {text} | | | | | |")
            continue
        seconds = record["device"]["median"] * 1e-6
        ratio = "" if contender == OURS or not mine else f"{record['device']['median'] / mine:.1f}x"
        peak = record.get("peak_bytes")
        cells += [
            _microseconds(record["device"]) + ("" if record["method"] == "graph" else " *"),
            ratio,
            f"{record['python']['median']:.0f}",
            _percent(case["bytes"] / seconds, copy),
            _percent(case["flops"] / seconds, products),
            "" if peak is None else f"{peak / record['result_bytes']:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def markdown(recorded: dict) -> str:
    machine, ceilings = recorded["machine"], recorded["ceilings"]
    lines = [
        f"# {machine.get('gpu', 'no device yet')}",
        "",
        f"{machine['date']}, commit {machine['commit']}, torch {machine['torch']}, kernels for "
        f"{machine['kernels']}: `{machine['command']}`.",
        "",
    ]
    if ceilings is None:
        return "\n".join([*lines, "Nothing was measured.", ""])
    lines += [
        f"Measured in the same run: copy {_rate(ceilings['copy_bytes_per_second'], 'B')}; 8192^3 product "
        + ", ".join(
            f"{p} {_rate(ceilings[f'{p}_flops_per_second'], 'FLOP')}" for p in ("bf16", "tf32", "fp32")
        )
        + f"; a graph of one tiny kernel {ceilings['smallest_graph_microseconds']:.1f} us, which is in every "
        "figure.",
        "",
        "us: median (20th-80th percentile) of CUDA-graph replays between events with a cold L2, * of calls "
        "from Python where no graph was captured. Python: the same called from Python. copy, product: the "
        "case's least bytes and FLOP per second in percent of those ceilings. Peak: memory at the peak of a "
        "call over that of its results. Every contender passed the float64 gate, or its row says so.",
        "",
        "| computation | precision | contender | us | of ours | Python us | copy | product | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in recorded["results"].items():
        lines += _rows(name, result, ceilings)
    return "\n".join([*lines, ""])
