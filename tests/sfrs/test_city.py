"""What the rendered city promises: reproducible, in the folder format, and different where it should be."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfrs.data.places import load_places
from sfrs.runtime.errors import UserError
from sfrs.synthetic.city.renderer import render
from sfrs.synthetic.city.scene import build_scene
from sfrs.synthetic.city.style import draw_style
from sfrs.synthetic.city.textures import paint_front
from sfrs.synthetic.city.views import DAY, NIGHT, Drive, Views, Visit, drive, visit
from sfrs.synthetic.city.write import city_config, write_city

pytestmark = pytest.mark.slow

SIZE = (64, 80)


@pytest.fixture(scope="module")
def scene():
    return build_scene(seed=11, blocks=1)


@pytest.fixture(scope="module")
def views(scene) -> Views:
    how = Drive(spacing=30.0, headings=4, conditions=(1.0, 0.0, 0.0, 0.0))
    return drive(scene.plan, how, seed=1)[np.arange(8)]


def _files(root):
    return {f.relative_to(root): f.read_bytes() for f in sorted(root.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def tiny_config():
    config = city_config("small", seed=2)
    quarter = config.quarters["train"]
    quarters = {
        split: replace(
            quarter,
            database=replace(quarter.database, spacing=40.0, headings=3),
            queries=replace(quarter.queries, count=6),
        )
        for split in ("train", "test")
    }
    return replace(config, quarters=quarters)


def only_train(config, **changes):
    return replace(config, quarters={"train": config.quarters["train"]}, **changes)


@pytest.fixture(scope="module")
def written(tiny_config, tmp_path_factory):
    """A city rendered on one thread."""
    root = tmp_path_factory.mktemp("city") / "one"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert write_city(root, tiny_config)
    finally:
        torch.set_num_threads(threads)
    return root


def test_equal_seeds_give_equal_bytes_for_any_number_of_threads(tiny_config, written, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        write_city(tmp_path, only_train(tiny_config))
    finally:
        torch.set_num_threads(threads)
    first, second = _files(written / "images/train"), _files(tmp_path / "images/train")
    assert len(first) > 20 and first == second


def test_another_seed_gives_other_pictures(tiny_config, written, tmp_path):
    write_city(tmp_path, only_train(tiny_config, seed=3))
    assert not set(_files(written).values()) & set(_files(tmp_path).values())


def test_the_folder_is_read_back_with_positives_and_disjoint_splits(written):
    train, test = load_places(written, "train"), load_places(written, "test")
    gaps = np.linalg.norm(train.queries.positions[:, None] - train.database.positions[None], axis=-1)
    assert len(train.queries) == 6 and gaps.min(axis=1).max() < 1.0  # taken close to a view
    between = np.linalg.norm(train.database.positions[:, None] - test.database.positions[None], axis=-1)
    assert between.min() > 1000.0
    assert all(len(file.name.split("@")) == 16 for file in train.database.files)


def test_a_finished_city_is_not_rendered_again_and_an_interrupted_one_goes_on(tiny_config, written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jpg")}
    assert not write_city(tmp_path, tiny_config)
    (tmp_path / "city.json").rename(tmp_path / "city.partial.json")
    for file in (tmp_path / "images/test").rglob("*.jpg"):
        file.unlink()
    (tmp_path / "images/test").rename(tmp_path / "images/.test.partial")
    assert write_city(tmp_path, tiny_config)
    after = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jpg")}
    assert before.keys() == after.keys()
    assert all(before[f] == after[f] for f in before if "train" in f.parts)


def test_a_folder_with_another_city_is_refused_by_name(tiny_config, written):
    with pytest.raises(UserError, match="holds another city .*seed 2.*seed 9"):
        write_city(written, replace(tiny_config, seed=9))


def test_a_folder_of_somebody_elses_is_left_alone(tiny_config, tmp_path):
    photo = tmp_path / "holiday.jpg"
    photo.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds holiday.jpg, which was not written here"):
        write_city(tmp_path, tiny_config)
    assert list(tmp_path.iterdir()) == [photo]


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match="size is 'huge', expected one of demo, small"):
        city_config("huge")


def test_night_is_dark_and_day_is_bright(scene, views):
    day = render(scene, replace(views, condition=np.full(8, DAY)), SIZE)
    night = render(scene, replace(views, condition=np.full(8, NIGHT)), SIZE)
    assert day.mean() > 2 * night.mean()
    assert night.reshape(8, -1).max(axis=1).min() > 120  # windows or signs shine


def test_haze_hides_what_is_far(scene, views):
    clear = render(scene, replace(views, haze=np.full(8, 0.0)), SIZE)
    fog = render(scene, replace(views, haze=np.full(8, 0.2)), SIZE)
    assert fog.astype(float).std() < 0.6 * clear.astype(float).std()


def test_years_differ_near_the_ground_only(scene):
    style = draw_style(np.random.default_rng(5))
    before, after = paint_front(np.random.default_rng(6), style, 12.0, 15.0, years=2)
    changed = np.abs(before.colour - after.colour).max(axis=(1, 2)) > 0
    top = int(style.ground_height * 8)
    assert changed[:top].mean() > 0.5 and not changed[top:].any()


def test_facades_of_two_buildings_differ(scene):
    fronts = np.flatnonzero(scene.plan.walls.kind == 0)
    texels = {scene.wall_texture[i, 0].item() for i in fronts}
    assert len(texels) == len(fronts)


def test_another_moment_changes_what_stands_in_the_street(scene, views):
    other = render(scene, replace(views, moment=views.moment + 1), SIZE)
    same = render(scene, views, SIZE)
    assert np.array_equal(same, render(scene, views, SIZE))
    changed = (np.abs(same.astype(int) - other.astype(int)).max(axis=-1) > 60).mean()
    assert 0.01 < changed < 0.6


def test_queries_near_a_view_share_its_condition_and_stay_within_reach(scene):
    database = drive(scene.plan, Drive(10.0, 9, (0.5, 0.3, 0.2, 0.0)), seed=1)
    queries = visit(scene.plan, database, Visit(30, near=True, lateral=0.7, turn=4.0), seed=1)
    base = [np.flatnonzero((database.panorama == p) & (database.tile == t))[0]
            for p, t in zip(queries.panorama, queries.tile, strict=True)]  # fmt: skip
    base = database[np.array(base)]
    assert np.hypot(queries.x - base.x, queries.y - base.y).max() <= 0.71
    turn = (queries.heading - base.heading + 180) % 360 - 180
    assert np.abs(turn).max() <= 4.0
    assert (queries.condition == base.condition).all() and (queries.year != base.year).all()
