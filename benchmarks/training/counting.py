"""What an epoch and the whole run of Pittsburgh's size take, counted from the rates measured here."""

import math
from dataclasses import dataclass

from .steps import CACHED, FRESH

VARIANTS = 4
"""Jittered variants of every image in the cache whose building is counted."""


@dataclass(frozen=True)
class Pittsburgh:
    """Sizes of Pitts30k: what is trained on, mined from, and validated on."""

    queries: int = 7_320
    images: int = 17_320
    validation: int = 17_608
    refresh_every: int = 1_000
    epochs: tuple[int, ...] = (1, 5, 5, 5)
    dim: int = 32_768

    @property
    def refreshes(self) -> int:
        return math.ceil(self.queries / self.refresh_every)

    def products(self, rerank: bool) -> float:
        """Floating-point operations of the distances of one mining: all pairs for re-ranking."""
        pairs = self.images**2 if rerank else self.refresh_every * (self.images - self.queries)
        return 2.0 * pairs * self.dim


PITTSBURGH = Pittsburgh()
REFERENCE = "reference"
WAYS = {REFERENCE: REFERENCE, FRESH: "float16", CACHED: "float16"}
"""How tuples are trained -> how descriptors are refreshed."""


def count(
    steps: list[dict],
    refresh: dict,
    mining: dict,
    product_rate: float,
    search_rate: float,
    job: Pittsburgh = PITTSBURGH,
) -> dict:
    """Seconds of an epoch of generation 2 by parts, and of the run's generations, for each way.

    A refresh reads photographs in the reference procedure only; the loading is added as measured. Building a
    cache is one pass of the trunk per image, and one per variant, and happens once in a run: an epoch bears
    its share of it. The reference procedure's mining is counted as lists of 1,000 queries against 10,000.

    Args:
        product_rate, search_rate: of `mining`; the search is what re-ranking takes here.
    """
    per_image, loading = refresh["seconds_per_image"], refresh["loading_seconds_per_image"]
    epochs = sum(job.epochs)
    ways: dict = {}
    for way, descriptors in WAYS.items():
        peer = "lists" if way == REFERENCE else "sfrs"
        image = per_image[descriptors] + (loading if way == REFERENCE else 0)
        copies = {REFERENCE: 0, FRESH: 1, CACHED: 1 + VARIANTS}[way]
        building = copies * (job.images * (per_image[REFERENCE] + loading))
        building += job.validation * (per_image[REFERENCE] + loading) if copies else 0
        parts = {}
        for number, result in enumerate(steps, start=1):
            rerank = number > 1
            rate = search_rate if rerank and way != REFERENCE else product_rate
            seconds = mining["seconds"]["with re-ranking" if rerank else "without re-ranking"][peer]
            parts[number] = {
                "steps": job.queries * result["seconds_per_tuple"][way],
                "refresh": job.refreshes * job.images * image,
                "mining": job.refreshes * (seconds + job.products(rerank) / rate),
                "validation": job.validation * image,
                "cache": building / epochs,
            }
        run = sum(
            n * sum(parts[min(generation, 2)].values()) for generation, n in enumerate(job.epochs, start=1)
        )
        ways[way] = {"epoch": parts[2], "epoch_seconds": sum(parts[2].values()), "run_seconds": run}
    return ways
