"""Data sets as people have them: folders to be split, frames of walks, descriptors of other programs."""

import json

import numpy as np
import pytest
from pictures import write_photo
from tiny_town import OPTIONS

from sfrs.data.coordinates import within
from sfrs.data.places import PlacesError, load_places
from sfrs.runtime.errors import UserError

BERLIN, TOKYO, SYDNEY = (52.52, 13.405), (35.68, 139.77), (-33.87, 151.21)


def town(folder, role, count=6, step=20):
    for i in range(count):
        east = 500_000 + step * i + 3 * (role != "database")
        write_photo(folder / f"@{east}@4000000@{i}@.jpg", scene=i)
    return folder


def test_two_folders_are_a_data_set(tmp_path, run):
    database, queries = town(tmp_path / "walk1", "database"), town(tmp_path / "walk2", "queries")
    places = load_places(database, queries=str(queries))
    assert (len(places.database), len(places.queries), places.name) == (6, 6, "walk1")
    for file in queries.iterdir():
        file.rename(file.with_name(f"{file.name.split('@')[3]}.jpg"))
    with pytest.raises(
        PlacesError, match="0.jpg and 5 more of 12: fields 1 and 2.*--track FILE.gpx"
    ) as error:
        load_places(database, queries=str(queries))
    assert error.value.skip == "skip_unplaced"
    code, out, _ = run("data", "check", database, "--queries", queries, "--json")
    (split,) = json.loads(out)["splits"]
    assert split["unplaced"] == 6 and split["serves"] == ["index"]
    assert any("say nowhere" in finding["text"] for finding in split["findings"])


@pytest.mark.parametrize("layout", ["test", "images/test"])
def test_several_folders_of_queries_are_splits(tmp_path, layout):
    town(tmp_path / layout / "database", "database")
    town(tmp_path / layout / "queries_v1", "queries", count=3)
    assert len(load_places(tmp_path).queries) == 3
    town(tmp_path / layout / "queries_v2", "queries", count=4)
    assert len(load_places(tmp_path, "test/queries_v2").queries) == 4
    with pytest.raises(PlacesError, match="several folders of queries.*test/queries_v1 or test/queries_v2"):
        load_places(tmp_path)


@pytest.mark.filterwarnings("ignore:4 of 40 photographs lie within 50 m of a border")
@pytest.mark.parametrize("rule", ["time", "every:5", "area"])
def test_a_folder_is_split_without_a_photograph_serving_twice(tmp_path, rule):
    for i in range(40):
        east = 500_000 + 100 * (i % 20)
        time = f"2024:05:{1 + i // 20:02d} 12:{i % 20:02d}:00"
        write_photo(tmp_path / f"@{east}@{4000000 + i // 20}@{i:02d}@.jpg", time=time)
    places = {split: load_places(tmp_path, split, hold_out=rule) for split in ("train", "val", "test")}
    queries = {split: set(found.queries.files) for split, found in places.items()}
    assert all(queries.values()) and not (
        queries["test"] & queries["val"] or queries["test"] & queries["train"]
    )
    for split in ("train", "val"):
        used = queries[split] | set(places[split].database.files)
        assert not used & queries["test"]
    if rule == "time":
        assert {file.name[-8:-5] for file in queries["test"]} == {f"@{i}" for i in range(32, 40)}
    if rule == "area":
        east = {
            s: np.concatenate([p.database.positions, p.queries.positions])[:, 0] for s, p in places.items()
        }
        assert (
            east["train"].max() + 100 <= east["val"].min() and east["val"].max() + 100 <= east["test"].min()
        )


def test_a_folder_that_cannot_be_split_says_why(tmp_path):
    town(tmp_path, "database")
    with pytest.raises(PlacesError, match="6 of 6 photographs do not say when.*every:5"):
        load_places(tmp_path, hold_out="time")
    with pytest.raises(PlacesError, match="of which none is a query.*--hold-out"):
        load_places(tmp_path)
    with pytest.raises(UserError, match="--hold-out is 'half'; expected time, area, or every:N"):
        load_places(tmp_path, hold_out="half")


def test_distances_between_continents_are_those_on_earth(tmp_path):
    for role, where in (("database", BERLIN), ("queries", TOKYO)):
        write_photo(tmp_path / role / "a.jpg", where)
    places = load_places(tmp_path / "database", queries=str(tmp_path / "queries"))
    assert places.zone == "33N+54N" and places.metres(0, 0) == pytest.approx(8.94e6, rel=0.01)


def test_frames_are_right_by_their_number(tmp_path):
    for role in ("database", "queries"):
        for i in range(6):
            write_photo(tmp_path / role / f"{i:03d}.jpg", scene=i)
    read = dict(queries=str(tmp_path / "queries"))
    places = load_places(tmp_path / "database", frames="same", **read)
    near = within(places.queries.positions, places.database.positions, 1)
    assert near[2].tolist() == [1, 2, 3] and places.unit == "frames"
    np.save(tmp_path / "frames.npy", np.array([5, 4, 3, 2, 1, -1]))
    (tmp_path / "frames.csv").write_text("query,database\n000.jpg,005.jpg\n1,4\n2,3\n3,2\n4,1\n")
    for file in ("frames.npy", "frames.csv"):
        places = load_places(tmp_path / "database", frames=str(tmp_path / file), **read)
        near = within(places.queries.positions, places.database.positions, 0)
        assert [near[i].tolist() for i in range(6)] == [[5], [4], [3], [2], [1], []]
    np.save(tmp_path / "frames.npy", np.array([6, 4, 3, 2, 1, 0]))
    with pytest.raises(PlacesError, match="query 0, database 6; there are 6 queries and 6 database images"):
        load_places(tmp_path / "database", frames=str(tmp_path / "frames.npy"), **read)


# Saved descriptors


def saved(tmp_path, scale=1.0):
    rng = np.random.default_rng(0)
    database = rng.normal(size=(6, 8)).astype(np.float32)
    database *= scale / np.linalg.norm(database, axis=1, keepdims=True)
    queries = database[[0, 1, 2, 3]].copy()
    queries[1] = database[5]  # this query finds a wrong image
    np.save(tmp_path / "db.npy", database)
    np.save(tmp_path / "q.npy", queries)
    (tmp_path / "db.csv").write_text(
        "latitude,longitude\n" + "".join(f"52.0,{13 + i / 1000}\n" for i in range(6))
    )
    (tmp_path / "q.csv").write_text("lat,lon\n52.0,13.0001\n52.0,13.001\n52.0,13.002\n10.0,13.0\n")
    return "--descriptors", tmp_path / "db.npy", tmp_path / "q.npy"


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_saved_descriptors_are_scored_over_answerable_and_over_all_queries(run, tmp_path, scale):
    given = saved(tmp_path, scale)
    positions = ("--positions", tmp_path / "db.csv", "--positions", tmp_path / "q.csv")
    code, out, err = run("evaluate", *given, *positions, "--recall-at", "1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["recalls"]["1"] == pytest.approx(2 / 3) and result["recalls_of_all"]["1"] == 0.5
    assert result["queries_without_positive"] == 1
    code, out, _ = run("evaluate", *given, *positions, "--recall-at", "1")
    assert code == 0 and "% of all queries" in out and "50.0" in out and "66.7" in out


def test_descriptors_that_are_no_unit_vectors_are_ranked_by_distance(run, tmp_path):
    np.save(tmp_path / "db.npy", np.array([[1.0, 0.0], [10.0, 0.0]], np.float32))
    np.save(tmp_path / "q.npy", np.array([[1.5, 0.0], [9.0, 0.0]], np.float32))
    given = ("evaluate", "--descriptors", tmp_path / "db.npy", tmp_path / "q.npy", "--frames", "same")
    code, out, err = run(*given, "--radius", "0", "--recall-at", "1", "--json")
    assert code == 0 and json.loads(out)["recalls"] == {"1": 1.0}, err


@pytest.mark.parametrize("kind", ["txt", "npy"])
def test_positions_of_rows_come_from_names_and_arrays(run, tmp_path, kind):
    given = saved(tmp_path)
    for name, count in (("db", 6), ("q", 4)):
        metres = np.array([(500_000.0 + 100 * i, 4e6) for i in range(count)])
        np.save(tmp_path / f"{name}_at.npy", metres)
        (tmp_path / f"{name}_at.txt").write_text("".join(f"x/@{e:.2f}@{n:.2f}@.jpg\n" for e, n in metres))
    positions = [part for name in ("db", "q") for part in ("--positions", tmp_path / f"{name}_at.{kind}")]
    code, out, err = run("evaluate", *given, *positions, "--recall-at", "1", "--json")
    assert code == 0 and json.loads(out)["recalls"]["1"] == 0.75, err


def test_descriptors_that_do_not_fit_are_named(run, tmp_path):
    given = saved(tmp_path)
    code, _, err = run(
        "evaluate", *given, "--positions", tmp_path / "q.csv", "--positions", tmp_path / "q.csv"
    )
    assert code == 2 and "q.csv: 4 positions for 6 descriptors of the database" in err
    np.save(tmp_path / "small.npy", np.zeros((3, 2)))
    code, _, err = run(
        "evaluate", *given, "--positions", tmp_path / "small.npy", "--positions", tmp_path / "q.csv"
    )
    assert code == 2 and "may be degrees or metres" in err
    database = np.load(tmp_path / "db.npy")
    database[3, 2] = np.nan
    np.save(tmp_path / "db.npy", database)
    code, _, err = run(
        "evaluate", *given, "--positions", tmp_path / "db.csv", "--positions", tmp_path / "q.csv"
    )
    assert code == 2 and "1 descriptors of the database are not finite, the first in row 3" in err


def test_a_folder_of_photographs_is_trained_on_and_reported(run, tmp_path):
    photos = tmp_path / "photos"
    for i in range(40):
        latitude = BERLIN[0] + (i % 20) / 1000 + (i // 20) / 50_000
        write_photo(
            photos / f"{i:02d}.jpg",
            (latitude, BERLIN[1]),
            time=f"2024:05:{1 + i // 20:02d} 12:{i % 20:02d}:00",
            scene=i % 20,
        )
    folder = ("--data", photos, "--hold-out", "time")
    code, _, err = run(
        "train", *folder, *OPTIONS, "--generations", "1", "--epochs", "1", "--out", tmp_path / "run"
    )
    assert code == 0, err
    code, out, err = run("evaluate", *folder, "--weights", tmp_path / "run", "--json")
    result = json.loads(out)
    assert code == 0 and result["queries"] == 8 and result["reading"] == {"hold_out": "time"}, err
    code, _, err = run("report", tmp_path / "run", "--out", tmp_path / "report")
    assert code == 0 and (tmp_path / "report/index.html").is_file(), err


def test_a_run_says_what_it_lacks(run, tmp_path):
    town(tmp_path / "photos", "database")
    code, _, err = run("evaluate", "--data", tmp_path / "photos", "--backbone", "tiny", "--random-weights")
    assert code == 2 and "of which none is a query" in err
    code, _, err = run("evaluate", "--backbone", "tiny", "--random-weights")
    assert code == 2 and "Give --data PATH, or two folders" in err
    code, out, err = run("data", "check", tmp_path / "photos")
    assert code == 0 and "Serves sfrs index." in out and "Does not serve sfrs train" in out
    assert "training would stop" not in out.replace("\n", " ")
