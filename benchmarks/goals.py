"""What the operators should reach, as data, and the table that holds a record against it."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Goals:
    """Of one case; None: no such goal.

    A comparison counts the fastest peer of its kind and, of the two mallocs, the one that is kinder to it.

    Attributes:
        compiled: how many times longer the fastest peer under ``torch.compile`` should take.
        eager: the same of the fastest peer without it.
        peak_share: share of the measured arithmetic peak.
        peak_bytes: most growth of resident memory during a call.
        time_of: a case and how many times its time per image may be taken.
        memory: how many times the memory of the fastest eager peer.
    """

    compiled: float | None = None
    eager: float | None = None
    peak_share: float | None = None
    peak_bytes: float | None = None
    time_of: tuple[str, float] | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Row:
    """A goal and what was measured.

    Attributes:
        met: None if there is nothing to compare with.
        limit: what would be measured if ours ran at the arithmetic peak, where that is known.
        pace: what would be measured if ours took as long as its steps do one by one, where that is known.
        beyond: which of the two would not meet the goal either.
    """

    goal: str
    measured: str
    met: bool | None
    limit: str = ""
    pace: str = ""
    beyond: str = ""


def milliseconds(result: dict, peer: str) -> list[float]:
    """Median milliseconds per image of a peer, one per malloc."""
    return [times[peer]["median_ms"] / result["images"] for times in result["times"].values()]


def least_ratio(result: dict, ours: str, peer: str) -> float:
    pairs = zip(milliseconds(result, peer), milliseconds(result, ours), strict=True)
    return min(theirs / mine for theirs, mine in pairs)


def peak_share(result: dict, ours: str, roof: dict | None) -> float | None:
    """Of the arithmetic peak of as many threads, best call beside best repetition: what other work on the
    machine takes away, it takes from both. None where no roof of as many threads was measured."""
    peak = (roof or {}).get("flops_per_second", {}).get(str(result["threads"]))
    if peak is None:
        return None
    return result["flops"] / (best_milliseconds(result, ours) * 1e-3) / peak["best"]


def best_milliseconds(result: dict, peer: str) -> float:
    """Of all calls of a peer, under any malloc."""
    return min(times[peer]["min_ms"] for times in result["times"].values())


def fastest(result: dict, ours: str, *, compiled: bool) -> str | None:
    """The peer of that kind that takes the least multiple of our time."""
    names = [
        name
        for name in next(iter(result["times"].values()))
        if name != ours and name.endswith("torch.compile") == compiled
    ]
    return min(names, key=lambda name: least_ratio(result, ours, name), default=None)


def rows(
    goals: Goals, result: dict, ours: str, roof: dict | None, steps_ms: float | None = None
) -> Iterator[Row]:
    """Each goal of a case beside the record of it; ``steps_ms`` of its steps one by one, per image."""
    for kind in ("compiled", "eager"):
        wanted = getattr(goals, kind)
        if wanted is None:
            continue
        peer = fastest(result, ours, compiled=kind == "compiled")
        goal = f"{wanted:g}x the fastest {kind} peer"
        if peer is None:
            yield Row(goal, f"no {kind} peer passed the gate", None)
            continue
        ratio, share = least_ratio(result, ours, peer), peak_share(result, ours, roof)
        # Best call beside best call, ours as long as the peak of float32, or its steps, allow.
        known = share and result["shapes"]["dtype"] == "torch.float32"
        best = best_milliseconds(result, peer)
        limit = best / best_milliseconds(result, ours) / share if known else None
        pace = best / result["images"] / steps_ms if steps_ms else None
        beyond = [name for name, most in (("the peak", limit), ("its steps", pace)) if most and most < wanted]
        yield Row(
            goal,
            f"{ratio:.2f}x ({peer})",
            ratio >= wanted,
            "" if limit is None else f"{limit:.1f}x",
            "" if pace is None else f"{pace:.1f}x",
            "" if ratio >= wanted or not beyond else beyond[0],
        )
    if goals.peak_share is not None:
        share = peak_share(result, ours, roof)
        text = "no peak was measured" if share is None else f"{100 * share:.0f} %"
        yield Row(
            f"{100 * goals.peak_share:.0f} % of the peak",
            text,
            None if share is None else share >= goals.peak_share,
        )
    if goals.peak_bytes is not None:
        peak = result["peak_bytes"][ours]
        text = "not known here" if peak is None else f"{peak / 1e6:.0f} MB"
        yield Row(
            f"at most {goals.peak_bytes / 1e6:.0f} MB",
            text,
            None if peak is None else peak <= goals.peak_bytes,
        )
    if goals.time_of is not None:
        yield _beside(goals.time_of, result, ours)
    if goals.memory is not None:
        yield _memory(goals.memory, result, ours)


def _beside(goal: tuple[str, float], result: dict, ours: str) -> Row:
    other, most = goal
    text = f"at most {most:g}x the time per image of {other}"
    if "beside" not in result:
        return Row(text, "not measured in turns with it", None)
    others = (found["median_ms_per_image"] for found in result["beside"].values())
    ratio = max(one / many for one, many in zip(milliseconds(result, ours), others, strict=True))
    return Row(text, f"{ratio:.2f}x", ratio <= most)


def _memory(wanted: float, result: dict, ours: str) -> Row:
    text = f"1/{wanted:g} of the memory of the fastest eager peer"
    peer = fastest(result, ours, compiled=False)
    mine, theirs = result["peak_bytes"][ours], result["peak_bytes"].get(peer)
    if mine is None or theirs is None:
        return Row(text, "not known here", None)
    return Row(text, f"{mine / 1e6:.0f} of {theirs / 1e6:.0f} MB ({peer})", mine * wanted <= theirs)
