"""``python -m benchmarks.report [--check]``: tables and plots of README and docs from benchmarks/results.

Of what was recorded on several processors the README shows the newest, the other pages all, the newest first.

With ``--check`` nothing is written; the command fails if a page does not show the recorded results, or if a
plot was not drawn from them.
"""

import argparse
import json
from pathlib import Path

from . import operator_tables
from .pages import show
from .record import files_of

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    from . import (
        confidence_tables,
        convolution,
        describing,
        drop_in,
        engine,
        exported,
        fine_tuning,
        jitter,
        kernel_steps,
        labels,
        million,
        photographs,
        plots,
        reranking_tables,
        scaling,
        sizes,
        studies,
    )
    from .training import table as training

    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page, mark, results, text in (
        ("README.md", "benchmarks", "cpu", operator_tables.summary),
        ("docs/performance.md", "goals", "cpu", operator_tables.goals_table),
        ("docs/performance.md", "peers", "cpu", operator_tables.peers),
        ("docs/performance.md", "scaling", "scaling", scaling.table),
        ("docs/performance.md", "steps", "kernel-steps", kernel_steps.table),
        ("docs/performance.md", "describing", "describing", describing.table),
        ("docs/drop-in.md", "drop-in", "drop-in", drop_in.table),
        ("docs/operators.md", "convolution", "convolution", convolution.table),
        ("docs/indexing.md", "million", "million", million.table),
        ("docs/scale.md", "engine", "engine", engine.table),
        ("docs/locate.md", "confidence", "confidence", confidence_tables.tables),
        ("docs/photographs.md", "photographs", "photographs", photographs.table),
        ("docs/photographs.md", "sizes", "sizes", sizes.table),
        ("docs/photographs.md", "fine-tuning", "fine-tuning", fine_tuning.table),
        ("docs/study.md", "generations", "generations", studies.table),
        ("docs/study.md", "gradient", "gradient", studies.table),
        ("docs/research.md", "choice", "choice", studies.table),
        ("docs/research.md", "labels", "labels", labels.table),
        ("docs/reranking.md", "reranking", "reranking", reranking_tables.tables),
        ("docs/export.md", "exported", "exported", exported.table),
        ("docs/training.md", "training", "training-cpu", training.table),
        ("docs/training.md", "jitter", "jitter", jitter.table),
    ):
        files = files_of(results)
        if not files:
            print(f"{page} shows no table of {mark}: {results}.json is not recorded yet")
            continue
        newest_alone = page == "README.md"
        tables = [text(json.loads(file.read_text("utf-8"))) for file in files[: 1 if newest_alone else None]]
        show(ROOT / page, mark, "\n\n".join(tables), check=check)
    for plot in plots.PLOTS:
        for file in files_of(plot.results):
            plots.show(plot, file, check=check)


if __name__ == "__main__":
    main()
