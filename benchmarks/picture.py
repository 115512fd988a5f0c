"""``python -m benchmarks.picture``: docs/plots/regions.png, the picture at the head of README.

A quarter of the rendered city is photographed by day, and again by night from other places with another lens.
EfficientNet-Lite0 with clusters of the first photographs locates one of the second; the nine regions of both
are compared. Of all queries that are right, the one is shown whose parts match best in different places.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import sfrs
from sfrs.retrieval.evaluation import evaluate
from sfrs.retrieval.explain import REGION_NAMES, PairExplanation, draw_region, explain_pair
from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.terminal import progress_tasks
from sfrs.synthetic.city import write

SIZE = (192, 240)
SHORT = ("whole", "top", "bottom", "left", "right", "t. left", "t. right", "b. left", "b. right")
PICTURE = Path(__file__).resolve().parents[1] / "docs/plots/regions.png"


def main() -> None:
    write.IMAGE_SIZE = SIZE
    with TemporaryDirectory() as folder, progress_tasks() as tasks:
        write.write_city(folder, write.city_config("small"), tasks)
        places = sfrs.load_places(folder, "test")
        model = sfrs.load("efficientnet-lite0", size=SIZE)
        model.fit_clusters(places.database.files, progress=tasks("k-means for NetVLAD"))
        result = evaluate(model, places, tasks=tasks)
        best = None
        for query in np.flatnonzero(result.correct[:, 0]):
            files = places.queries.files[query], places.database.files[result.predictions[query, 0]]
            pair = explain_pair(model, *map(model.features, files))
            i, j = pair.best_part
            gain = pair.similarities[i, j] - pair.whole
            if i != j and (best is None or gain > best[0]):
                best = gain, pair, [Image.open(file).convert("RGB") for file in files]
    draw(best[1], best[2])
    print(PICTURE)


def draw(pair: PairExplanation, photographs: list[Image.Image]) -> None:
    i, j = pair.best_part
    figure = Figure(figsize=(10, 3.0), dpi=120, layout="constrained")
    query, image, table = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
    for axes, photo, boxes, region, title in (
        (query, photographs[0], pair.query_boxes, i, "query"),
        (image, photographs[1], pair.image_boxes, j, "match"),
    ):
        axes.imshow(draw_region(photo, region, boxes=boxes).resize((720, 576), Image.Resampling.BICUBIC))
        axes.set_title(f"{title}: {REGION_NAMES[region]}", fontsize=10)
        axes.axis("off")
    table.imshow(pair.similarities, cmap="viridis")
    table.set_xticks(range(9), SHORT, rotation=45, fontsize=7)
    table.set_yticks(range(9), SHORT, fontsize=7)
    table.set_title("similarity of the nine regions", fontsize=10)
    table.plot(j, i, "s", markersize=14, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2)
    with replaced(PICTURE) as partial:
        figure.savefig(partial, format="png")


if __name__ == "__main__":
    main()
