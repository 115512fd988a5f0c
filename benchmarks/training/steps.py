"""The step of a tuple: the reference procedure's, and ours."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from sfrs.features.source import step_number
from sfrs.models.autocast import loss_scale
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import build_features, training_images
from sfrs.training.step import StudentTeacher, TrainingImages, prefetch, tuple_losses

from . import reference
from .job import Job
from .timing import exact_convolutions, peak_bytes, seconds

REFERENCE, FRESH, CACHED = "reference", "fresh jitter", "jitter=N"
TIMES, FLOOR = 4, 1e-5
"""A gradient from a trunk computed anew may err so many times what the reference procedure errs in float32,
and this much more, where that one rounds luckily."""
CACHE_LIMIT = 5e-2
"""From the cache: its float16 features switch a few ReLUs."""
NO_JITTER = {"jitter": (), "trunk_cache": "ram"}


def gradients(network) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def largest_error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of the parameters' gradients, each relative to the norm of the exact one."""
    return max(((found[name] - value).norm() / value.norm()).item() for name, value in exact.items())


class Ours:
    """Steps of the product on the job's first tuples; the images of the next one are loaded meanwhile."""

    def __init__(
        self, job: Job, number: int, images: TrainingImages, config: TrainConfig, tuples: int
    ) -> None:
        self.generation: StudentTeacher = job.generation(number)
        self.images, self.config, self.tuples = images, config, job.tuples[:tuples]
        self.steps = 0

    def losses(self) -> torch.Tensor:
        self.steps += 1
        step = step_number(self.generation.generation, self.steps)
        prefetch(self.tuples, self.images, step)
        prefetch(self.tuples, self.images, step + 1)
        found = tuple_losses(self.generation, self.tuples, self.images, self.config, step=step)
        return found.hard + self.config.soft_weight * found.soft

    def __call__(self) -> None:
        optimizer, scale = self.generation.optimizer, loss_scale(self.config.autocast)
        optimizer.zero_grad(set_to_none=True)
        (scale * self.losses()).backward()
        if scale != 1:
            torch._foreach_div_([p.grad for group in optimizer.param_groups for p in group["params"]], scale)
        optimizer.step()


class Theirs:
    """Steps of the reference procedure on the job's first tuple; the images of the next one
    are loaded meanwhile."""

    def __init__(self, job: Job, number: int, pool: ThreadPoolExecutor, *, jitter: bool = True) -> None:
        self.job, self.number, self.pool, self.jitter = job, number, pool, jitter
        generation = job.generation(number)
        self.student = reference.with_torch_convolutions(generation.student)
        self.optimizer = generation.optimizer
        teacher = copy.deepcopy(job.teacher if number > 1 else job.network).requires_grad_(False)
        self.teacher = reference.with_torch_convolutions(teacher)
        self.steps = 0

        first, queries = job.tuples[:1], len(job.places.queries)
        self.query, self.positive = int(first.queries[0]), queries + int(first.positives[0])
        self.negatives, self.difficult = (
            (queries + part[0]).tolist() for part in (first.negatives, first.difficult)
        )
        self.coming = self._submit()

    def images(self) -> reference.ReferenceTuple:
        """The images of the next step, which were loaded during the one before."""
        futures, self.coming = self.coming, self._submit()
        loaded = self.job.loaded(futures)
        return reference.gather(loaded.__getitem__, self.query, self.positive, self.negatives, self.difficult)

    def _submit(self) -> dict[int, Future]:
        self.steps += 1
        numbers = [self.query, self.positive, *self.negatives, *self.difficult]
        return self.job.submit(self.pool, numbers, self.steps if self.jitter else None)

    def __call__(self) -> None:
        images = self.images()
        reference.step(self.student, self.teacher, self.optimizer, images, self.job.config, self.number)


def gate(job: Job, number: int, pool: ThreadPoolExecutor) -> dict[str, float]:
    """Errors of the gradients of one tuple without jitter: the reference procedure's in float32, and ours.

    They are relative to the reference procedure's in float64. Leaves the program if one of ours is too large.
    """
    theirs = Theirs(job, number, pool, jitter=False)
    images = theirs.images()
    exact = _gradients_in(torch.float64, theirs, images)
    errors = {REFERENCE: largest_error(_gradients_in(torch.float32, theirs, images), exact)}
    fresh = job.config.changed(jitter=(), trunk_cache="off")
    for name, source in {FRESH: _fresh(job, fresh), CACHED: job.images(**NO_JITTER)}.items():
        ours = Ours(job, number, source, job.config.changed(**NO_JITTER), 1)
        ours.losses().backward()
        errors[name] = largest_error(gradients(ours.generation.student), exact)
        most = limit(name, errors[REFERENCE])
        if not errors[name] <= most:
            raise SystemExit(
                f"REFUSED step, generation {number}: {name} errs by {errors[name]:.1e}, at most {most:.1e} "
                f"was expected; the reference procedure in float32 errs by {errors[REFERENCE]:.1e}"
            )
    return errors


def limit(name: str, reference_error: float) -> float:
    """The largest error that ``gate`` lets pass."""
    return CACHE_LIMIT if name == CACHED else TIMES * reference_error + FLOOR


def _gradients_in(
    dtype: torch.dtype, theirs: Theirs, images: reference.ReferenceTuple
) -> dict[str, torch.Tensor]:
    """The reference procedure's, from copies of its networks."""
    student, teacher = (copy.deepcopy(network).to(dtype) for network in (theirs.student, theirs.teacher))
    images = reference.ReferenceTuple(images.easy.to(dtype), images.difficult.to(dtype))
    hard, soft = reference.tuple_losses(student, teacher, images, theirs.job.config, theirs.number)
    (hard + (theirs.job.config.soft_weight * soft if theirs.number > 1 else 0 * soft)).backward()
    return gradients(student)


def _fresh(job: Job, config: TrainConfig) -> TrainingImages:
    features = build_features(config, job.network, (job.places, job.places))
    return training_images(config, job.network, job.places, features.train)


def peers(
    job: Job, number: int, pool: ThreadPoolExecutor, autocast: tuple[str, ...] = ()
) -> dict[str, tuple[Callable[[], None], int]]:
    """Name -> (step, tuples of a step)."""
    several = len(job.tuples)
    found: dict[str, tuple[Callable[[], None], int]] = {REFERENCE: (Theirs(job, number, pool), 1)}
    cached = job.config.trunk_cache
    for format_ in ("off", *autocast):
        suffix = "" if format_ == "off" else f", {format_}"
        for name, cache in ((FRESH, "ram"), (CACHED, cached)):
            config = job.config.changed(trunk_cache=cache, autocast=format_)
            images = job.images(trunk_cache=cache, autocast=format_)
            for tuples in (1, several) if name == CACHED or number > 1 else (1,):
                label = f"{name}{suffix}{f', {tuples} tuples a step' if tuples > 1 else ''}"
                found[label] = Ours(job, number, images, config, tuples), tuples
    return found


def measure(
    job: Job, pool: ThreadPoolExecutor, *, rounds: int, most: float, autocast: tuple[str, ...] = ()
) -> list[dict]:
    """For generations 1 and 2: seconds per tuple and peak memory of a step, and the gate's errors."""
    results = []
    for number in (1, 2):
        with exact_convolutions():
            errors = gate(job, number, pool)
        measured = peers(job, number, pool, autocast)
        calls = {name: step for name, (step, _) in measured.items()}
        taken = seconds(calls, job.device, rounds=rounds, most=most)
        results.append(
            {
                "generation": number,
                "errors": errors,
                "seconds_per_tuple": {name: taken[name] / measured[name][1] for name in calls},
                "peak_bytes": {name: peak_bytes(step, job.device) for name, step in calls.items()},
            }
        )
    return results
