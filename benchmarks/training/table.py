"""The recorded figures as tables for docs/training.md."""

from .counting import PITTSBURGH, VARIANTS
from .steps import CACHED, FRESH, REFERENCE


def table(recorded: dict) -> str:
    """All tables, one part after the other."""
    about = recorded["machine"]
    height, width = recorded["size"]
    loads = f", load {about['load_before']:.1f} to {about['load_after']:.1f}"
    head = (
        f"{recorded['device']}, {about['threads']} threads{loads}, torch {about['torch']}, commit "
        f"{about['commit']}, {about['date']}: `{about['command']}`. {recorded['network']}, made-up "
        f"photographs at {height}x{width}, float32 unless a row says otherwise, medians."
    )
    parts = {"step": step_table, "refresh": refresh_table, "mining": mining_table, "epoch": epoch_table}
    shown = [text(recorded[part]) for part, text in parts.items() if recorded.get(part)]
    return "\n\n".join([head, *shown])


def step_table(results: list[dict]) -> str:
    lines = [
        "**A tuple's step.** The images of a tuple are loaded, jittered, and go through networks, losses and "
        "SGD; those of the next step are loaded meanwhile.",
        "",
        "| | generation | seconds per tuple | tuples/s | | memory of a step |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        times = result["seconds_per_tuple"]
        for name, seconds in times.items():
            times_faster = "" if name == REFERENCE else f"**{times[REFERENCE] / seconds:.2f}x**"
            peak = result["peak_bytes"][name]
            memory = "" if peak is None else f"{peak / 1e6:,.0f} MB"
            lines.append(
                f"| {name} | {result['generation']} | {seconds:.3f} | {1 / seconds:.2f} | {times_faster} "
                f"| {memory} |"
            )
    worst = {name: max(result["errors"][name] for result in results) for name in (REFERENCE, FRESH, CACHED)}
    lines += [
        "",
        "Without jitter the gradients err, from those of the reference procedure in float64, by "
        f"{worst[REFERENCE]:.0e} (reference), {worst[FRESH]:.0e} (ours, the trunk computed anew) and "
        f"{worst[CACHED]:.0e} (ours, from the float16 cache).",
    ]
    return "\n".join(lines)


def refresh_table(result: dict) -> str:
    times = result["seconds_per_image"]
    lines = [
        "**Descriptors for mining.** The whole network (reference), or conv5 and NetVLAD from the trunk "
        "cache in its number format. Loading a photograph, which only the reference does, costs "
        f"{1e3 * result['loading_seconds_per_image']:.1f} ms more and is not in the figures.",
        "",
        "| | images/s | | memory |",
        "|---|---|---|---|",
    ]
    for name, seconds in times.items():
        label = name if name == REFERENCE else f"cache, {name}"
        times_faster = "" if name == REFERENCE else f"**{times[REFERENCE] / seconds:.1f}x**"
        peak = result["peak_bytes"][name]
        memory = "" if peak is None else f"{peak / 1e6:,.0f} MB"
        lines.append(f"| {label} | {1 / seconds:.1f} | {times_faster} | {memory} |")
    return "\n".join(lines)


def mining_table(results: list[dict]) -> str:
    lines = [
        "**Mining.** Tuples of all queries from their descriptors, products of descriptors included. Lists: "
        "a dictionary and a sorted list of the gallery per query, re-ranking distances from matrices of all "
        "pairs. The last column is the products alone, tile after tile.",
        "",
        "| queries x gallery | numbers of a descriptor | | lists | sfrs | | products |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, times in result["seconds"].items():
            lines.append(
                f"| {result['queries']:,} x {result['database']:,} | {result['dim']:,} | {name} "
                f"| {times['lists']:.1f} s | {times['sfrs']:.3f} s "
                f"| **{times['lists'] / times['sfrs']:.0f}x** | {times['product']:.3f} s |"
            )
    return "\n".join(lines)


def epoch_table(ways: dict) -> str:
    size = PITTSBURGH
    lines = [
        f"**An epoch of Pitts30k, counted from the rates above**: {size.queries:,} tuples of generation 2, "
        f"{size.refreshes} refreshes of {size.images:,} images, mining with products of {size.dim:,} "
        f"numbers, validation on {size.validation:,} images. The cache (with jitter=N: N = {VARIANTS}) is "
        f"built once a run; an epoch bears one of {sum(size.epochs)} parts of it. Hours:",
        "",
        "| | steps | refreshes | mining | validation | share of the cache | epoch | | four generations |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    whole = ways[REFERENCE]["epoch_seconds"]
    for name, way in ways.items():
        cells = [f"{seconds / 3600:.2f}" for seconds in way["epoch"].values()]
        ratio = "" if name == REFERENCE else f"**{whole / way['epoch_seconds']:.1f}x**"
        lines.append(
            f"| {name} | {' | '.join(cells)} | {way['epoch_seconds'] / 3600:.2f} | {ratio} "
            f"| {way['run_seconds'] / 3600:,.1f} |"
        )
    return "\n".join(lines)
