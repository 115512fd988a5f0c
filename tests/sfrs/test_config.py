"""The training configuration: presets, checks, flags."""

import json

import pytest

from sfrs.training.config import PRESETS, ConfigError, TrainConfig, flag_text, parse_flag


def test_the_paper_preset_has_the_papers_values():
    paper = TrainConfig.preset("paper")
    assert (paper.height, paper.width, paper.clusters) == (480, 640, 64)
    assert paper.jitter == (0.7, 0.7, 0.7, 0.5)
    assert (paper.learning_rate, paper.momentum, paper.weight_decay) == (0.001, 0.9, 0.001)
    assert (paper.generations, paper.epochs) == (4, (1, 5, 5, 5))
    assert (paper.tuple_negatives, paper.negative_pool) == (10, 1000)
    assert (paper.difficult_positives, paper.positive_pool) == (10, 20)
    assert (paper.rerank_neighbours, paper.rerank_lambda) == (20, 0.1)
    assert [paper.teacher_temperature(g) for g in (1, 2, 3, 4)] == [0.07, 0.07, 0.06, 0.05]
    assert (paper.hard_loss, paper.soft_weight, paper.temperature) == ("sare-ind", 0.5, 0.07)
    assert (paper.positive_radius, paper.negative_radius, paper.refresh_every) == (10, 25, 1000)
    assert paper.region_negatives and paper.soft_level == "region" and not paper.soft_negatives


def test_the_reference_preset_departs_from_the_paper_in_these_values_only():
    paper, reference = TrainConfig.preset("paper"), TrainConfig.preset("reference")
    assert paper == TrainConfig()
    changed = {k: v for k, v in reference.to_dict().items() if v != paper.to_dict()[k]}
    assert changed == {
        "init_iterations": 100,
        "lr_schedule": "halving",
        "rerank_distances": "squared-twice",
        "triplet_distance": "plain",
        "margin": pytest.approx(0.316227766),
        "teacher": "last",
    }


def test_a_configuration_stored_before_the_reference_preset_is_that_of_the_paper():
    stored = TrainConfig().to_dict()
    for name in ("init_iterations", "rerank_distances", "triplet_distance", "teacher"):
        del stored[name]
    assert TrainConfig.from_dict(stored) == TrainConfig.preset("paper")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json_and_flags(name):
    config = TrainConfig.preset(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    texts = {
        key: flag_text(getattr(config, key)) for key, value in config.to_dict().items() if value is not True
    }
    read = {
        key: parse_flag(key, text)
        for key, text in texts.items()
        if not isinstance(getattr(config, key), bool)
    }
    assert config.changed(**read) == config


def test_lists_of_text_are_no_numbers():
    config = TrainConfig(ignore_keys=["fc.*", "head.*"])
    assert TrainConfig.from_dict(config.to_dict()).ignore_keys == ("fc.*", "head.*")


def test_values_by_generation_repeat_their_last():
    config = TrainConfig(generations=9, epochs=(3, 2), teacher_temperatures=(0.1, 0.2))
    assert [config.epochs_of(g) for g in (1, 2, 9)] == [3, 2, 2]
    assert [config.teacher_temperature(g) for g in (1, 2, 9)] == [0.1, 0.2, 0.2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(hard_loss="hinge"), "hard_loss is 'hinge', expected one of triplet, sare-joint, sare-ind"),
        (dict(teacher="first"), "teacher is 'first', expected one of best, last"),
        (
            dict(rerank_distances="cubed"),
            "rerank_distances is 'cubed', expected one of squared, squared-twice",
        ),
        (dict(triplet_distance="cosine"), "triplet_distance is 'cosine', expected one of squared, plain"),
        (dict(track="a\0b"), "track is .*, expected text without null bytes"),
        (dict(init_iterations=0), "init_iterations is 0, expected at least 1"),
        (dict(clusters=0), "clusters is 0, expected at least 1"),
        (dict(clusters=2.5), "clusters is 2.5, expected int"),
        (dict(learning_rate="fast"), "learning_rate is 'fast', expected float"),
        (dict(learning_rate=0), "learning_rate is 0.0, expected a positive number"),
        (dict(learning_rate=float("nan")), "learning_rate is nan"),
        (dict(epochs=3), "epochs is 3, expected a list of int"),
        (dict(epochs=()), "epochs is .*expected a list of at least one number"),
        (dict(seed=float("inf")), "seed is inf, expected int"),
        (dict(jitter=(0.1, 0.2)), "jitter is .*four numbers"),
        (dict(jitter=(float("inf"), 0, 0, 0)), "jitter is .*for each 0 or more"),
        (dict(jitter=(0.7, 0.7, 0.7, 0.9)), "jitter is .*the fourth number, of at most 0.5"),
        (dict(soft_ranks=(3, 2)), "soft_ranks is .*two ranks"),
        (dict(negative_radius=5), "negative_radius is 5.0, expected at least positive_radius"),
        (dict(soft_negatives=1), "soft_negatives is 1, expected bool"),
        (dict(trunk_cache="rom"), "trunk_cache is 'rom', expected one of ram, gpu, disk, off, .*jitter=N"),
        (dict(trunk_cache="off,jitter=2"), "trunk_cache is 'off,jitter=2', expected"),
        (dict(trunk_cache="jitter=2", jitter=()), "trunk_cache is jitter=2, expected .* jitter is empty"),
        (dict(cache_dtype="float64"), "cache_dtype is 'float64', expected one of float16, bfloat16, float32"),
        (dict(cache_gigabytes=-1), "cache_gigabytes is -1.0, expected 0 or more"),
        (dict(autocast="half"), "autocast is 'half', expected one of off, bfloat16, float16"),
        (dict(teacher_temperatures=(0.07, 0)), "teacher_temperatures is .*positive"),
        (dict(teacher_temperatures=(float("inf"),)), "teacher_temperatures is .*positive"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown configuration field.*: epoch, lr"):
        TrainConfig.from_dict({"lr": 1, "epoch": 2, "seed": 3})
    with pytest.raises(ConfigError, match="preset is 'best', expected one of paper"):
        TrainConfig.preset("best")
    with pytest.raises(ConfigError, match="unknown configuration field"):
        TrainConfig().changed(lr=1)


def test_differences_name_what_decides_the_result():
    assert TrainConfig().differences(TrainConfig(seed=1, workers=9)) == ["seed: 0 -> 1"]
    cached = TrainConfig(trunk_cache="ram,jitter=2")
    assert cached.differences(TrainConfig(trunk_cache="disk,jitter=2")) == []
    for other in ("ram", "disk", "disk,jitter=3", "off"):
        changed = TrainConfig(trunk_cache=other)
        assert cached.differences(changed) == [f"trunk_cache: ram,jitter=2 -> {other}"]
    assert TrainConfig().differences(TrainConfig(trunk_cache="off")) == ["trunk_cache: ram -> off"]
