"""The training configuration: one dataclass, its presets, and its way into and out of JSON and flags."""

import json
import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_origin, get_type_hints

from sfrs.training.config_values import MOST, ConfigError, check_range, coerced

if TYPE_CHECKING:
    from sfrs.data.places import Reading


def _option(default: Any, text: str, **changes: Any) -> Any:
    """Make a field with its help text. ``compare=False``: it may differ when a run is resumed.

    Numbers are at least ``least`` (0 if not given), more with ``positive``, and at most ``most``.
    """
    usual = {"help": text, "compare": True, "least": 0, "positive": False, "most": MOST}
    return field(default=default, metadata={**usual, **changes})


class CacheSpec(NamedTuple):
    """The place (ram, gpu, disk or off) and the number of variants that `TrainConfig.trunk_cache` names."""

    place: str
    variants: int


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes. The defaults are the paper's values.

    Lists by generation (`epochs`, `teacher_temperatures`) repeat their last value for later generations.
    Raises `ConfigError` naming the field, what came and what was expected.
    """

    data: str = _option("", "folder or manifest the run reads its images from", compare=False)
    val_data: str = _option("", "folder or manifest of the validation images; empty: as data", compare=False)
    skip_bad_images: bool = _option(
        False, "leave out images that cannot be read, and list them", compare=False
    )
    hold_out: str = _option(
        "", "split a folder of photographs into train and val: time, area or every:5", compare=False
    )
    positions: str = _option("", "CSV file that says where images were taken, see sfrs index", compare=False)
    track: str = _option("", "GPX track, to place images by the time in their EXIF", compare=False)
    clock: str = _option("", "what the camera's clock was ahead of UTC, as +02:00", compare=False)
    zone: str = _option("", "UTM zone of metres that do not say theirs, as 33N", compare=False)
    skip_unplaced: bool = _option(
        False, "leave out images that say nowhere where they were taken", compare=False
    )
    backbone: str = _option("vgg16", "name of the backbone, as efficientnet-lite0 or timm:NAME")
    weights: str = _option(
        "", "file with weights, or a published network; empty: those of the backbone, else random ones"
    )
    ignore_keys: tuple[str, ...] = _option((), "patterns of tensors of --weights to leave out")
    clusters: int = _option(64, "NetVLAD clusters K", least=1, most=65_536)
    height: int = _option(480, "height of training images, pixels", least=1)
    width: int = _option(640, "width of training images, pixels", least=1)
    jitter: tuple[float, ...] = _option(
        (0.7, 0.7, 0.7, 0.5),
        "colour jitter of training images: brightness,contrast,saturation,hue; empty: none",
    )

    init: Literal["kmeans", "given"] = _option(
        "kmeans", "NetVLAD weights to start from: k-means of local features, or as given"
    )
    init_images: int = _option(500, "images the k-means initialisation samples", least=1)
    init_features: int = _option(50_000, "local features the k-means initialisation samples", least=1)
    init_iterations: int = _option(25, "iterations of the k-means initialisation", least=1)

    trunk_cache: str = _option(
        "ram",
        "where frozen features are kept: ram, gpu, disk; off computes them whenever needed. With ,jitter=N "
        "also of N jittered variants of every training image, for training steps to choose from",
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = _option(
        "float16", "number format of the trunk cache"
    )
    cache_gigabytes: float = _option(
        0.0, "size of the trunk cache, at most; what it does not hold is computed when needed. 0: no limit"
    )
    cache_dir: str = _option(
        "",
        "folder of a trunk cache on disk, which later runs use again; empty: that of the run",
        compare=False,
    )
    autocast: Literal["off", "bfloat16", "float16"] = _option(
        "off", "number format of convolutions; everything after them is float32"
    )
    compile_trunk: bool = _option(False, "run the frozen trunk through torch.compile")
    batch_size: int = _option(32, "images per forward pass when describing", least=1)
    workers: int = _option(4, "threads that decode images", compare=False, least=1)
    device: str = _option("auto", "cpu, cuda, ...; auto: cuda where there is one")

    generations: int = _option(4, "generations; 1 trains the baseline", least=1, most=1000)
    epochs: tuple[int, ...] = _option((1, 5, 5, 5), "epochs of each generation", least=1)
    queries_per_epoch: int = _option(0, "queries of an epoch, drawn again for each; 0: all")
    tuples_per_step: int = _option(4, "tuples per optimisation step", least=1)
    refresh_every: int = _option(1000, "queries between two refreshes of the mining descriptors", least=1)

    learning_rate: float = _option(0.001, "learning rate of SGD", positive=True)
    lr_schedule: Literal["constant", "linear", "halving"] = _option(
        "constant",
        "learning rate within a generation; linear falls to 0, halving halves it in every fifth epoch",
    )
    momentum: float = _option(0.9, "momentum of SGD")
    weight_decay: float = _option(0.001, "weight decay of SGD")

    positive_radius: float = _option(
        10.0, "positives are database images within this distance, metres", positive=True
    )
    negative_radius: float = _option(
        25.0, "negatives are database images beyond this distance, metres", positive=True
    )
    tuple_negatives: int = _option(10, "hardest negatives in a tuple", least=1)
    negative_pool: int = _option(1000, "random negatives the hardest are chosen from", least=1)
    difficult_positives: int = _option(10, "difficult positives in a tuple, at most", least=1)
    positive_pool: int = _option(
        20, "nearest positives that are re-ranked to find the difficult ones", least=1
    )
    rerank_neighbours: int = _option(20, "k1 of the k-reciprocal re-ranking", least=1)
    rerank_lambda: float = _option(0.1, "share of the feature distance in the re-ranking distance")
    rerank_distances: Literal["squared", "squared-twice"] = _option(
        "squared", "feature distances that are re-ranked: Euclidean squared, or squared once more"
    )

    hard_loss: Literal["triplet", "sare-joint", "sare-ind"] = _option("sare-ind", "hard loss")
    temperature: float = _option(0.07, "temperature of the student's softmax", positive=True)
    triplet_distance: Literal["squared", "plain"] = _option(
        "squared", "Euclidean distance of the triplet loss, squared or plain"
    )
    margin: float = _option(0.1, "margin of the triplet loss, a distance as triplet_distance says")
    region_negatives: bool = _option(
        True, "from generation 2, a negative is its region most similar to the query, not the whole image"
    )
    soft_loss: str = _option("cross-entropy", "soft loss, of those registered in sfrs.training.losses")
    soft_weight: float = _option(0.5, "weight of the soft loss")
    teacher: Literal["best", "last"] = _option(
        "best",
        "a generation's network that teaches the next: the best in validation, or that of the last epoch",
    )
    teacher_temperatures: tuple[float, ...] = _option(
        (0.07, 0.07, 0.06, 0.05),
        "temperature of the teacher's labels in each generation (the first is not used)",
        positive=True,
    )
    soft_level: Literal["region", "image"] = _option("region", "what the soft labels speak of")
    soft_ranks: tuple[int, ...] = _option(
        (),
        "first,last: difficult positives are these ranks of the nearest positives, without re-ranking",
        least=1,
    )
    soft_negatives: bool = _option(
        False, "put the tuple's negatives into the denominator of the soft loss (not in the paper)"
    )

    select_recall: int = _option(5, "N of the validation recall@N that chooses the best network", least=1)
    seed: int = _option(0, "seed of every random choice")
    log_every: int = _option(
        20, "optimisation steps between two lines in metrics.jsonl", compare=False, least=1
    )
    checkpoint_minutes: float = _option(
        10.0, "minutes between two checkpoints within an epoch; 0: after every step", compare=False
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = coerced(f.name, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)  # the class is frozen; this is its own constructor
            check_range(f.name, value, f.metadata)
        _check_together(self)

    @classmethod
    def preset(cls, name: str = "paper", **changes: Any) -> "TrainConfig":
        """Return the preset ``name`` with some fields changed. Raises `ConfigError` for unknown names."""
        if name not in PRESETS:
            raise ConfigError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Build from field values (lists are taken for tuples). Raises `ConfigError` for an unknown field."""
        _check_names(values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return field values as JSON knows them (tuples become lists)."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self)}))

    def reading(self) -> "Reading":
        """Return what the data set does not say itself, for its reader."""
        from sfrs.data.places import Reading  # takes half a second, which --help has not

        said = ("hold_out", "positions", "track", "clock", "zone", "skip_unplaced")
        return Reading(**{name: getattr(self, name) for name in said})

    def changed(self, **changes: Any) -> "TrainConfig":
        """Return a copy with some fields changed."""
        _check_names(changes)
        return replace(self, **changes)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Return ``name: ours -> theirs`` for every field that decides a result and differs."""
        return [
            f"{f.name}: {getattr(self, f.name)} -> {getattr(other, f.name)}"
            for f in fields(self)
            if f.metadata["compare"] and self._deciding(f.name) != other._deciding(f.name)
        ]

    def _deciding(self, name: str) -> Any:
        """Return what of a field decides results: of the trunk cache not where it is, but what it holds."""
        if name == "trunk_cache":
            return self.cache.place == "off", self.cache.variants
        return getattr(self, name)

    @property
    def cache(self) -> CacheSpec:
        """`trunk_cache`, read: ``ram,jitter=4``; ``jitter=4`` alone is in memory."""
        text = self.trunk_cache.replace(" ", "")
        found = re.fullmatch(r"(ram|gpu|disk|off)?(?:(?(1),)jitter=(0*[1-9]\d*))?", text)
        if not text or found is None or (found[1] == "off" and found[2]):
            raise ConfigError(
                f"trunk_cache is {self.trunk_cache!r}, expected one of ram, gpu, disk, off, the first three "
                "also with ,jitter=N (N > 0)"
            )
        return CacheSpec(found[1] or "ram", int(found[2] or 0))

    def epochs_of(self, generation: int) -> int:
        """Return the epochs of ``generation`` (counted from 1)."""
        return self.epochs[min(generation, len(self.epochs)) - 1]

    def teacher_temperature(self, generation: int) -> float:
        """Return the temperature of the teacher's labels in ``generation`` (counted from 1)."""
        return self.teacher_temperatures[min(generation, len(self.teacher_temperatures)) - 1]


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "reference": {
        "init_iterations": 100,
        "lr_schedule": "halving",
        "rerank_distances": "squared-twice",
        "triplet_distance": "plain",
        "margin": 0.1**0.5,
        "teacher": "last",
    },
    "demo": {
        "backbone": "gradient",
        "clusters": 32,
        "height": 128,
        "width": 160,
        "jitter": (),
        "generations": 2,
        "epochs": (8,),
        "tuples_per_step": 8,
        "learning_rate": 0.06,
        "lr_schedule": "linear",
        "teacher_temperatures": (0.12,),
    },
}
"""Changes to the defaults. ``paper`` changes nothing: the defaults are SFRS (ECCV 2020, section 4).

``reference`` does what the implementation of the paper's authors does where that departs from the paper.

``demo`` trains the small backbone on the rendered city. Its learning rate and epochs were chosen by the
baseline's validation recall@5 (rates 0.01, 0.03, 0.06; 8, 12, 16 epochs); the rate falls to zero within each
generation, without which some seeds collapse.
"""


def _check_names(values: dict[str, Any]) -> None:
    unknown = sorted(set(values) - {f.name for f in fields(TrainConfig)})
    if unknown:
        raise ConfigError(f"unknown configuration field(s): {', '.join(unknown)}")


def parse_flag(name: str, text: str) -> Any:
    """Read a field's value from its flag's text, ``1,5,5`` for lists. Raises `ConfigError` naming it."""
    _check_names({name: text})
    hint = get_type_hints(TrainConfig)[name]
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if get_origin(hint) is tuple:
        return coerced(name, [part.strip() for part in text.split(",") if part.strip()], hint)
    return coerced(name, text, hint)


def flag_text(value: Any) -> str:
    """Return what `parse_flag` reads back."""
    return ",".join(f"{v}" for v in value) if isinstance(value, tuple) else f"{value}"


def _check_together(config: TrainConfig) -> None:
    def refuse(name: str, expected: str) -> None:
        raise ConfigError(f"{name} is {getattr(config, name)}, expected {expected}")

    if config.soft_loss != "cross-entropy":
        from sfrs.training.losses import SOFT_LOSSES  # takes a second, which --help has not

        if config.soft_loss not in SOFT_LOSSES:
            refuse("soft_loss", f"one of {', '.join(SOFT_LOSSES)}")
    if config.rerank_lambda > 1:
        refuse("rerank_lambda", "a share between 0 and 1")
    if config.negative_radius < config.positive_radius:
        refuse("negative_radius", f"at least positive_radius ({config.positive_radius})")
    for name in ("epochs", "teacher_temperatures"):
        if not getattr(config, name):
            refuse(name, "a list of at least one number")
    if config.jitter and (len(config.jitter) != 4 or config.jitter[3] > 0.5):
        refuse("jitter", "four numbers, the hue, the fourth number, of at most 0.5, or none")
    if config.cache.variants and not config.jitter:
        refuse("trunk_cache", "no ,jitter=N, because jitter is empty")
    if config.soft_ranks and (len(config.soft_ranks) != 2 or config.soft_ranks[0] > config.soft_ranks[1]):
        refuse("soft_ranks", "two ranks first,last counted from 1, or none")
