"""Tables of docs/reranking.md from benchmarks/results/reranking.json."""

from scipy.stats import binomtest

from sfrs.retrieval.region_rerank import SCORES


def pooled(pieces: list[dict], score: str) -> tuple[dict[str, list[float]], float, float]:
    """Recalls in % before and after, the difference at 1, and p of the pooled exact McNemar test."""
    weights = [piece["queries"] for piece in pieces]
    recalls = {
        name: [
            100 * sum(w * p["recalls"][name][n] for w, p in zip(weights, pieces, strict=True)) / sum(weights)
            for n in ("1", "5", "10")
        ]
        for name in ("searched", score)
    }
    gained, lost = (sum(piece[side][score] for piece in pieces) for side in ("gained", "lost"))
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return recalls, 100 * (gained - lost) / sum(weights), p_value


def scores_table(pieces: list[dict]) -> list[str]:
    """Every score on the validation quarters: what it adds to recall, per network and on average."""
    networks = list(dict.fromkeys(piece["network"] for piece in pieces))
    lines = [
        f"| score | {' | '.join(f'@1, {name}' for name in networks)} | @1, all | @5, all | @10, all |",
        "|---|" + "---|" * (len(networks) + 3),
    ]
    for score in SCORES:
        gains = [pooled([p for p in pieces if p["network"] == name], score)[1] for name in networks]
        recalls, _, _ = pooled(pieces, score)
        everything = [
            after - before for before, after in zip(recalls["searched"], recalls[score], strict=True)
        ]
        lines.append(f"| `{score}` | " + " | ".join(f"{gain:+.1f}" for gain in gains + everything) + " |")
    return lines


def gains_table(rows: list[tuple[str, list[dict]]], score: str) -> list[str]:
    """Recall before -> after with one score."""
    lines = [
        "| | queries | recall@1 | recall@5 | recall@10 | @1 | p | CPU ms per query |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, pieces in rows:
        recalls, gain, p_value = pooled(pieces, score)
        pairs = [f"{a:.1f} → {b:.1f}" for a, b in zip(recalls["searched"], recalls[score], strict=True)]
        ms = sum(piece["cpu_ms_per_query"] for piece in pieces) / len(pieces)
        queries = sum(piece["queries"] for piece in pieces)
        cells = (name, f"{queries:,}", *pairs, f"{gain:+.1f}", f"{p_value:.1g}", f"{ms:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables(recorded: dict) -> str:
    pieces, machine, score = recorded["pieces"], recorded["machine"], recorded["score"]
    measured = [piece for piece in pieces.values() if "recalls" in piece]
    city = [piece for piece in measured if piece["data"] == "city" and not piece["whitened"]]
    rows = []
    for split, name in (("val", "validation"), ("test", "test")):
        for network in dict.fromkeys(piece["network"] for piece in city):
            chosen = [p for p in city if p["split"] == split and p["network"] == network]
            rows.append((f"city, {name}: {network}", chosen))
        whitened = [p for p in measured if p["whitened"] and p["split"] == split]
        rows.append((f"city, {name}: {whitened[0]['network']}, search whitened to 512", whitened))
    rows += [
        (f"{piece['data']}: {piece['network']} of seed {piece['seed']}", [piece])
        for piece in measured
        if piece["data"] != "city"
    ]
    steps = next(piece for piece in pieces.values() if "cpu_ms" in piece)
    return "\n".join(
        [
            f"{machine['cpu']}, one thread, torch {machine['torch']}, commit {machine['commit']}, "
            f"{machine['date']}: `python -m benchmarks.reranking`.",
            "",
            "Choosing the score on the validation quarters of three cities, 500 queries each: points of "
            "recall that re-ranking the first 100 adds.",
            "",
            *scores_table([piece for piece in city if piece["split"] == "val"]),
            "",
            f"With `{score}`, in %:",
            "",
            *gains_table(rows, score),
            "",
            "Steps for 100 candidates at the size of the paper's network, K = 64, D = 512, in CPU ms: "
            + "; ".join(f"{name} {ms:.0f}" for name, ms in steps["cpu_ms"].items())
            + ".",
        ]
    )
