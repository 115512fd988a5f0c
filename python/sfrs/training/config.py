"""The training configuration: one dataclass, its presets, and its way into and out of JSON and flags."""

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from sfrs.features.spec import CacheSpec
from sfrs.runtime.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration field has a value it cannot have; the message names the field."""


def _option(default: Any, text: str, *, choices: tuple[str, ...] = (), compare: bool = True) -> Any:
    """A field with its help text. ``compare=False``: may differ when a run is resumed."""
    return field(default=default, metadata={"help": text, "choices": choices, "compare": compare})


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
    backbone: str = _option("vgg16", "name of the backbone")
    weights: str = _option("", "file with weights; empty: those published for the backbone, else random ones")
    clusters: int = _option(64, "NetVLAD clusters K")
    height: int = _option(480, "height of training images, pixels")
    width: int = _option(640, "width of training images, pixels")
    jitter: tuple[float, ...] = _option(
        (0.7, 0.7, 0.7, 0.5),
        "colour jitter of training images: brightness,contrast,saturation,hue; empty: none",
    )

    init: str = _option(
        "kmeans",
        "NetVLAD weights to start from: k-means of local features, or as given",
        choices=("kmeans", "given"),
    )
    init_images: int = _option(500, "images the k-means initialisation samples")
    init_features: int = _option(50_000, "local features the k-means initialisation samples")

    trunk_cache: str = _option(
        "ram",
        "where outputs of the frozen trunk are kept: ram, gpu, disk; off computes them anew. With ,jitter=N "
        "also of N jittered variants of every training image, for training steps to choose from",
    )
    cache_dtype: str = _option(
        "float16", "number format of the trunk cache", choices=("float16", "bfloat16", "float32")
    )
    cache_gigabytes: float = _option(
        0.0, "size of the trunk cache, at most; what it does not hold is computed when needed. 0: no limit"
    )
    cache_dir: str = _option(
        "",
        "folder of a trunk cache on disk, which later runs use again; empty: that of the run",
        compare=False,
    )
    autocast: str = _option(
        "off",
        "number format of convolutions; all behind them is float32",
        choices=("off", "bfloat16", "float16"),
    )
    compile_trunk: bool = _option(False, "run the frozen trunk through torch.compile")
    batch_size: int = _option(32, "images per forward pass when describing")
    workers: int = _option(4, "threads that decode images", compare=False)
    device: str = _option("auto", "cpu, cuda, ...; auto: cuda where there is one")

    generations: int = _option(4, "generations; 1 trains the baseline")
    epochs: tuple[int, ...] = _option((1, 5, 5, 5), "epochs of each generation")
    queries_per_epoch: int = _option(0, "queries of an epoch, drawn anew each time; 0: all")
    tuples_per_step: int = _option(4, "tuples per optimisation step")
    refresh_every: int = _option(1000, "queries between two refreshes of the mining descriptors")

    learning_rate: float = _option(0.001, "learning rate of SGD")
    lr_schedule: str = _option(
        "constant", "learning rate within a generation; linear falls to 0", choices=("constant", "linear")
    )
    momentum: float = _option(0.9, "momentum of SGD")
    weight_decay: float = _option(0.001, "weight decay of SGD")

    positive_radius: float = _option(10.0, "positives are database images within this distance, metres")
    negative_radius: float = _option(25.0, "negatives are database images beyond this distance, metres")
    tuple_negatives: int = _option(10, "hardest negatives in a tuple")
    negative_pool: int = _option(1000, "random negatives the hardest are chosen from")
    difficult_positives: int = _option(10, "difficult positives in a tuple, at most")
    positive_pool: int = _option(20, "nearest positives that are re-ranked to find the difficult ones")
    rerank_neighbours: int = _option(20, "k1 of the k-reciprocal re-ranking")
    rerank_lambda: float = _option(0.1, "share of the feature distance in the re-ranking distance")

    hard_loss: str = _option("sare-ind", "hard loss", choices=("triplet", "sare-joint", "sare-ind"))
    temperature: float = _option(0.07, "temperature of the student's softmax")
    margin: float = _option(0.1, "margin of the triplet loss, squared distance")
    region_negatives: bool = _option(
        True, "from generation 2, a negative is its region most similar to the query, not the whole image"
    )
    soft_weight: float = _option(0.5, "weight of the soft loss")
    teacher_temperatures: tuple[float, ...] = _option(
        (0.07, 0.07, 0.06, 0.05),
        "temperature of the teacher's labels in each generation (the first is not used)",
    )
    soft_level: str = _option("region", "what the soft labels speak of", choices=("region", "image"))
    soft_ranks: tuple[int, ...] = _option(
        (), "first,last: difficult positives are these ranks of the nearest positives, without re-ranking"
    )
    soft_negatives: bool = _option(
        False, "put the tuple's negatives into the denominator of the soft loss (not in the paper)"
    )

    select_recall: int = _option(5, "N of the validation recall@N that chooses the best network")
    seed: int = _option(0, "seed of every random choice")
    log_every: int = _option(20, "optimisation steps between two lines in metrics.jsonl", compare=False)
    checkpoint_minutes: float = _option(
        10.0, "minutes between two checkpoints within an epoch; 0: after every step", compare=False
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = _coerced(f.name, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)  # the class is frozen; this is its own constructor
            if f.metadata["choices"] and value not in f.metadata["choices"]:
                raise ConfigError(
                    f"{f.name} is {value!r}, expected one of {', '.join(f.metadata['choices'])}"
                )
        _check_ranges(self)

    @classmethod
    def preset(cls, name: str = "paper", **changes: Any) -> "TrainConfig":
        """The preset ``name`` with some fields changed. Raises `ConfigError` for unknown names."""
        if name not in PRESETS:
            raise ConfigError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """From field values (lists are taken for tuples). Raises `ConfigError` for an unknown field."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown configuration field(s): {', '.join(unknown)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Field values as JSON knows them (tuples become lists)."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self)}))

    def changed(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed."""
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            raise ConfigError(f"unknown configuration field(s): {', '.join(unknown)}")
        return replace(self, **changes)

    def differences(self, other: "TrainConfig") -> list[str]:
        """``name: ours -> theirs`` for every field that decides a result and differs."""
        return [
            f"{f.name}: {getattr(self, f.name)} -> {getattr(other, f.name)}"
            for f in fields(self)
            if f.metadata["compare"] and self._deciding(f.name) != other._deciding(f.name)
        ]

    def _deciding(self, name: str) -> Any:
        """What of a field decides results: of the trunk cache not where it is, but what it holds."""
        if name == "trunk_cache":
            return self.cache.place == "off", self.cache.variants
        return getattr(self, name)

    @property
    def cache(self) -> CacheSpec:
        """`trunk_cache`, read."""
        return CacheSpec.parse(self.trunk_cache)

    def epochs_of(self, generation: int) -> int:
        """Epochs of ``generation`` (counted from 1)."""
        return self.epochs[min(generation, len(self.epochs)) - 1]

    def teacher_temperature(self, generation: int) -> float:
        """Temperature of the teacher's labels in ``generation`` (counted from 1)."""
        return self.teacher_temperatures[min(generation, len(self.teacher_temperatures)) - 1]


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
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

``demo`` trains the small backbone on the rendered city. Its learning rate and epochs were chosen by the
baseline's validation recall@5 (rates 0.01, 0.03, 0.06; 8, 12, 16 epochs); the rate falls to zero within each
generation, without which some seeds collapse.
"""


def parse_flag(name: str, text: str) -> Any:
    """A field's value from its flag's text; ``1,5,5`` for lists. Raises `ConfigError` naming the field."""
    hint = get_type_hints(TrainConfig)[name]
    if _is_tuple(hint):
        return _coerced(name, [part.strip() for part in text.split(",") if part.strip()], hint)
    return _coerced(name, text, hint)


def flag_text(value: Any) -> str:
    """What `parse_flag` reads back."""
    return ",".join(f"{v}" for v in value) if isinstance(value, tuple) else f"{value}"


def _is_tuple(hint: Any) -> bool:
    return bool(get_args(hint))


def _coerced(name: str, value: Any, hint: Any) -> Any:
    if _is_tuple(hint):
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{name} is {value!r}, expected a list of {get_args(hint)[0].__name__}")
        return tuple(_coerced(name, v, get_args(hint)[0]) for v in value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and (isinstance(value, str) or number == value):
            return number
    raise ConfigError(f"{name} is {value!r}, expected {hint.__name__}")


_AT_LEAST_ONE = (
    "clusters", "height", "width", "init_images", "init_features", "batch_size", "workers", "generations",
    "tuples_per_step", "refresh_every", "tuple_negatives", "negative_pool", "difficult_positives",
    "positive_pool", "rerank_neighbours", "select_recall", "log_every",
)  # fmt: skip
_POSITIVE = ("learning_rate", "positive_radius", "negative_radius", "temperature")
_NOT_NEGATIVE = (
    "momentum",
    "weight_decay",
    "margin",
    "soft_weight",
    "queries_per_epoch",
    "rerank_lambda",
    "seed",
    "checkpoint_minutes",
    "cache_gigabytes",
)


def _check_ranges(config: TrainConfig) -> None:
    def refuse(name: str, expected: str) -> None:
        raise ConfigError(f"{name} is {getattr(config, name)}, expected {expected}")

    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            refuse(name, "at least 1")
    for name in _POSITIVE:
        if not 0 < getattr(config, name) < float("inf"):
            refuse(name, "a positive number")
    for name in _NOT_NEGATIVE:
        if not 0 <= getattr(config, name) < float("inf"):
            refuse(name, "0 or more")
    if config.rerank_lambda > 1:
        refuse("rerank_lambda", "a share between 0 and 1")
    if config.negative_radius < config.positive_radius:
        refuse("negative_radius", f"at least positive_radius ({config.positive_radius})")
    if not config.epochs or min(config.epochs) < 1:
        refuse("epochs", "a list of numbers of at least 1")
    if not config.teacher_temperatures or not all(0 < t < float("inf") for t in config.teacher_temperatures):
        refuse("teacher_temperatures", "a list of positive numbers")
    if config.jitter and (len(config.jitter) != 4 or not all(0 <= x < float("inf") for x in config.jitter)):
        refuse("jitter", "four numbers of 0 or more, or none")
    if config.jitter and config.jitter[3] > 0.5:
        refuse("jitter", "a hue, the fourth number, of at most 0.5")
    try:
        variants = config.cache.variants
    except ValueError as error:
        raise ConfigError(f"trunk_cache is {config.trunk_cache!r}, {error}") from None
    if variants and not config.jitter:
        refuse("trunk_cache", "no ,jitter=N, because jitter is empty")
    if config.soft_ranks and (
        len(config.soft_ranks) != 2 or not 1 <= config.soft_ranks[0] <= config.soft_ranks[1]
    ):
        refuse("soft_ranks", "two ranks first,last counted from 1, or none")
