"""Refreshing the descriptors that tuples are mined from: the whole network, or from the trunk cache."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sfrs.features.cache import FeatureCache
from sfrs.features.source import describe_features

from . import reference
from .job import Job, plain
from .timing import once, peak_bytes, seconds

REFERENCE = "reference"
BATCH = 8
"""Images of a pass of the reference procedure."""
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}
"""Largest difference of descriptors from the reference's, relative to the largest number in them."""


def reference_descriptors(job: Job, images: dict[int, Tensor]) -> Tensor:
    """All images through the whole network, a batch after the other."""
    network = reference.with_torch_convolutions(copy.deepcopy(job.network))
    batches = torch.stack(list(images.values())).split(BATCH)
    return torch.cat([reference.describe(network, batch) for batch in batches])


def measure(job: Job, pool: ThreadPoolExecutor, *, images: int, rounds: int, most: float) -> dict:
    """Seconds per image: of loading alone, of the reference (without loading), of each cache's number format.

    Args:
        images: that the reference procedure describes; the cache describes all of the job's.
    """
    numbers = list(range(min(images, len(job.files))))
    loading = once(lambda: job.loaded(job.submit(pool, numbers)), job.device) / len(numbers)
    loaded = job.loaded(job.submit(pool, numbers))
    expected = reference_descriptors(job, loaded)
    cache = plain(job.features.train)
    caches = {
        name: FeatureCache(cache.features.to(getattr(torch, name)), job.device)
        for name in ("float16", "bfloat16")
    }
    caches["float32"] = FeatureCache(
        torch.cat([job.network.trunk(image[None]) for image in loaded.values()]).contiguous(
            memory_format=torch.channels_last
        ),
        job.device,
    )
    errors, calls, counts = (
        {},
        {REFERENCE: lambda: reference_descriptors(job, loaded)},
        {REFERENCE: len(numbers)},
    )
    for name, source in caches.items():
        asked = torch.arange(len(source))
        found = describe_features(
            job.network, source, asked[: len(numbers)], batch_size=job.config.batch_size
        )
        errors[name] = ((found - expected).abs().max() / expected.abs().max()).item()
        if not errors[name] <= TOLERANCE[name]:
            raise SystemExit(f"REFUSED refresh: {name} errs by {errors[name]:.1e}")
        calls[name] = lambda source=source, asked=asked: describe_features(
            job.network, source, asked, batch_size=job.config.batch_size
        )
        counts[name] = len(source)
    taken = seconds(calls, job.device, rounds=rounds, most=most)
    return {
        "errors": errors,
        "loading_seconds_per_image": loading,
        "seconds_per_image": {name: taken[name] / counts[name] for name in calls},
        "peak_bytes": {name: peak_bytes(call, job.device) for name, call in calls.items()},
    }
