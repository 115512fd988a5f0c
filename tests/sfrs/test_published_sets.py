"""The published data sets, each written in its own form and read back."""

import csv
import json
import shutil

import numpy as np
import pytest
from published_sets import (
    ORIGIN,
    cells,
    write_gsv_city,
    write_mat,
    write_msls_city,
    write_pittsburgh,
    write_tokyo247,
    write_tokyo_tm,
)
from scipy.io import loadmat, savemat

from sfrs.data.coordinates import to_metres
from sfrs.data.neighbourhood import Neighbourhood, right_images
from sfrs.data.places import PlacesError, format_of, is_data_set, load_places
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.retrieval.evaluation import Scoring, evaluate
from sfrs.runtime.errors import UserError


def test_the_structure_is_nested_as_in_the_published_files(tmp_path):
    record = loadmat(write_pittsburgh(tmp_path, "train"))["dbStruct"].item()
    assert record[1][0][0].item() == "000/000000_pitch1_yaw1.jpg"
    assert record[2].shape == (2, 24) and record[4].shape == (2, 8)


@pytest.mark.parametrize("query_folder", ["queries", "queries_real"])
def test_pittsburgh_is_read_from_both_query_folders(tmp_path, query_folder):
    mat = write_pittsburgh(tmp_path, "train", query_folder=query_folder)
    places = load_places(mat, "train")
    assert (places.name, places.split) == ("pitts30k", "train")
    assert places.database.files[4] == tmp_path / "images/000/000001_pitch1_yaw2.jpg"
    assert places.queries.files[1] == tmp_path / query_folder / "000/000001_pitch1_yaw1.jpg"
    assert places.queries.positions[1].tolist() == [ORIGIN[0] + 44.0, ORIGIN[1]]
    assert all(file.is_file() for file in (*places.database.files, *places.queries.files))


def test_pittsburghs_views_of_a_panorama_are_one_place_and_its_query_another(tmp_path):
    places = load_places(write_pittsburgh(tmp_path, "train"), "train")
    ids = places.database.place_ids.reshape(8, 3)
    assert (ids == ids[:, :1]).all() and len(np.unique(ids)) == 8
    assert not set(places.queries.place_ids) & set(places.database.place_ids)
    near = Neighbourhood.of_places(places, 10.0, 25.0)
    assert [near.positives[i].tolist() for i in range(2)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("moved", "asked"),
    [
        ("", "datasets/pitts30k_val.mat"),
        ("", "datasets/pitts30k"),
        ("", "datasets"),
        ("", "."),
        ("raw/Pittsburgh", "raw"),
        ("Pittsburgh", "datasets/pitts30k"),
    ],
)
def test_a_mat_file_is_found_by_its_folder_its_beginning_and_itself(tmp_path, moved, asked):
    write_pittsburgh(tmp_path / moved, "val")
    if moved:
        mats = tmp_path / moved / "datasets"
        shutil.move(mats, tmp_path / "datasets")
        if asked == "raw":
            shutil.move(tmp_path / "datasets/pitts30k_val.mat", tmp_path / "raw/pitts30k_val.mat")
    places = load_places(tmp_path / asked, "val")
    assert places.database.files[0].is_file() and places.queries.files[0].is_file()
    assert places.database.files[0].is_relative_to(tmp_path / moved / "images")
    assert is_data_set(tmp_path / asked)


def test_images_without_a_folder_of_their_own_lie_beside_the_mat_files_folder(tmp_path):
    write_pittsburgh(tmp_path, "test")
    shutil.move(tmp_path / "images/000", tmp_path / "000")
    (tmp_path / "images").rmdir()
    places = load_places(tmp_path / "datasets", "test")
    assert places.database.files[0] == tmp_path / "000/000000_pitch1_yaw1.jpg"
    assert places.queries.files[0].is_relative_to(tmp_path / "queries_real")


def test_images_of_the_database_are_never_taken_for_queries(tmp_path):
    mat = write_pittsburgh(tmp_path, "test")
    shutil.rmtree(tmp_path / "queries_real")
    with pytest.raises(PlacesError, match="the images of the queries are not there.*looked in"):
        load_places(mat)


def test_each_split_comes_from_its_own_file(tmp_path):
    for first, split in enumerate(("train", "val", "test")):
        write_pittsburgh(tmp_path, split, spots=3 + first, first=10 * first)
    found = [
        len(load_places(tmp_path / "datasets/pitts30k", split).queries) for split in ("train", "val", "test")
    ]
    assert found == [3, 4, 5]
    assert format_of(tmp_path).splits(tmp_path) == ["train", "val", "test"]


def test_a_folder_with_two_sets_asks_which(tmp_path):
    mat = write_pittsburgh(tmp_path, "test")
    shutil.copy(mat, mat.with_name("pitts250k_test.mat"))
    with pytest.raises(PlacesError, match="several data sets have the split test.*pitts250k.*pitts30k"):
        load_places(tmp_path)
    assert load_places(mat.with_name("pitts250k")).name == "pitts250k"


def test_another_split_than_the_files_is_refused_with_a_way_out(tmp_path):
    mat = write_pittsburgh(tmp_path, "val")
    with pytest.raises(PlacesError, match=r"no split test, it has val.*--split.*datasets/pitts30k"):
        load_places(mat)


def test_missing_images_say_where_was_looked(tmp_path):
    mat = write_pittsburgh(tmp_path, "test")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(PlacesError) as error:
        load_places(mat)
    assert "images of the database" in str(error.value) and "000/000000_pitch1_yaw1.jpg" in str(error.value)
    assert str(tmp_path / "datasets") in str(error.value)


def broken(tmp_path, **changes):
    fields = dict(
        database=["a.jpg", "b.jpg"],
        database_utm=np.ones((2, 2)),
        queries=["q.jpg"],
        query_utm=np.ones((1, 2)),
    )
    return write_mat(tmp_path / "town_test.mat", **{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(database_utm=np.ones((3, 2))),
            r"field 2 of dbStruct is \[2, 3\] .* expected finite UTM .* \[2, 2\]",
        ),
        (dict(query_utm=np.array([[1, np.nan]])), "field 4 of dbStruct"),
        (dict(database=[1.0, 2.0]), "field 1 of dbStruct holds no file names"),
        (dict(stamps=([1], [1])), "field 3 of dbStruct is .* expected time stamps of 2 images"),
    ],
)
def test_a_structure_that_does_not_fit_names_the_field(tmp_path, changes, message):
    with pytest.raises(PlacesError, match=message):
        load_places(broken(tmp_path, **changes))


def test_a_damaged_or_foreign_mat_file_is_named(tmp_path):
    mat = write_pittsburgh(tmp_path, "test")
    whole = mat.read_bytes()
    savemat(mat, {"net": {"layers": cells(["conv"])}})
    with pytest.raises(PlacesError, match="no structure dbStruct"):
        load_places(mat)
    for content in (b"no matlab", whole[:-9]):
        mat.write_bytes(content)
        with pytest.raises(PlacesError, match="pitts30k_test.mat: this MATLAB file cannot be read"):
            load_places(mat)
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(64)
    mat.write_bytes(head)
    with pytest.raises(PlacesError, match="version 7.3.*-v7"):
        load_places(mat)


def test_tokyo_247_lists_jpg_has_png_and_conditions_in_turn(tmp_path):
    places = load_places(write_tokyo247(tmp_path / "tokyo247"))
    assert places.name == "tokyo247"
    assert {file.suffix for file in places.database.files} == {".png"}
    assert all(file.is_file() for file in (*places.database.files, *places.queries.files))
    assert places.queries.conditions == ("day", "sunset", "night")
    assert places.queries.subset(np.array([2, 0])).conditions == ("night", "day")


def test_tokyo_247_is_read_where_its_archives_are_unpacked_into_one_folder(tmp_path):
    write_tokyo247(tmp_path / "raw/tokyo247")
    (tmp_path / "raw/datasets").mkdir()
    shutil.move(tmp_path / "raw/tokyo247/tokyo247.mat", tmp_path / "raw/datasets/tokyo247.mat")
    for folder in (tmp_path / "raw/tokyo247/images").iterdir():
        shutil.move(folder, tmp_path / "raw/tokyo247" / folder.name)
    shutil.move(tmp_path / "raw/tokyo247/query", tmp_path / "raw/tokyo247/247query_subset_v2")
    places = load_places(tmp_path / "raw/datasets")
    assert all(file.is_file() for file in (*places.database.files, *places.queries.files))


def test_tokyo_247_panoramas_are_kept_apart_at_one_position(tmp_path):
    ids = load_places(write_tokyo247(tmp_path)).database.place_ids.reshape(3, 12)
    assert (ids == ids[:, :1]).all() and len(np.unique(ids)) == 3


def test_tokyo_time_machine_has_positives_of_another_time_only(tmp_path):
    places = load_places(write_tokyo_tm(tmp_path, "train"), "train")
    assert places.queries.files[0] in places.database.files
    near = Neighbourhood.of_places(places, 10.0, 25.0)
    assert [near.positives[i].tolist() for i in range(3)] == [[2, 3], [6, 7], [10, 11]]
    assert near.excluded[0].tolist() == [0, 1, 2, 3]
    part = places.queries.subset(np.array([1]))
    assert part.time_stamps.tolist() == places.queries.time_stamps[1:2].tolist()


def test_a_query_of_tokyo_time_machine_is_no_answer_to_itself(tmp_path):
    places = load_places(write_tokyo_tm(tmp_path, "val"), "val")
    assert right_images(places, 25.0)[1].tolist() == [6, 7]


def test_tokyo_sets_side_by_side_give_each_its_splits(tmp_path):
    write_tokyo247(tmp_path / "tokyo247")
    shutil.move(tmp_path / "tokyo247/tokyo247.mat", tmp_path / "tokyo247.mat")
    for split in ("train", "val"):
        write_tokyo_tm(tmp_path, split)
    assert [load_places(tmp_path, split).name for split in ("train", "val", "test")] == [
        "tokyoTM",
        "tokyoTM",
        "tokyo247",
    ]


def test_msls_reads_positions_and_conditions_and_leaves_panoramas_out(tmp_path):
    write_msls_city(tmp_path, "boston")
    places = load_places(tmp_path, "train")
    assert len(places.database) == 3 and len(places.queries) == 4
    assert places.queries.positions[1].tolist() == [ORIGIN[0] + 43.0, ORIGIN[1]]
    assert places.queries.conditions == ("day", "night", "day", "night")
    assert all(file.is_file() for file in (*places.database.files, *places.queries.files))
    near = Neighbourhood.of_places(places, 10.0, 25.0)
    assert [near.positives[i].tolist() for i in range(4)] == [[0], [1], [2], []]


def test_msls_splits_by_city_and_validates_on_the_subtask_all(tmp_path):
    for city in ("boston", "trondheim", "cph", "sf"):
        write_msls_city(tmp_path, city, origin=(ORIGIN[0] + 1e5 * len(city), ORIGIN[1]))
    write_msls_city(tmp_path, "miami", part="test")
    train, val = load_places(tmp_path, "train"), load_places(tmp_path, "val")
    assert {file.parts[-4] for file in train.queries.files} == {"boston", "trondheim"}
    assert {file.parts[-4] for file in val.queries.files} == {"cph", "sf"}
    assert len(train.queries) == 8 and len(val.queries) == 6, "a query of each city is not in the subtask all"
    assert format_of(tmp_path).splits(tmp_path) == ["train", "val"]


def test_cities_on_the_same_metres_of_their_zones_are_moved_apart(tmp_path):
    for city in ("amman", "goa", "nairobi"):
        write_msls_city(tmp_path, city)
    places = load_places(tmp_path, "train")
    near = Neighbourhood.of_places(places, 10.0, 25.0)
    assert near.positives.counts().tolist() == 3 * [1, 1, 1, 0]
    assert places.queries.positions[0].tolist() == [ORIGIN[0] + 3.0, ORIGIN[1]], "the first stays where it is"


def test_msls_says_what_is_missing(tmp_path):
    write_msls_city(tmp_path, "boston")
    with pytest.raises(PlacesError, match="no city of the split val.*cph and sf; cities found: boston"):
        load_places(tmp_path, "val")
    write_msls_city(tmp_path, "miami", part="test")
    with pytest.raises(PlacesError, match="test cities are not published.*--split val"):
        load_places(tmp_path, "test")
    table = tmp_path / "train_val/boston/query/postprocessed.csv"
    table.write_text(table.read_text().replace(f"{ORIGIN[0] + 43.0}", "east"))
    with pytest.raises(PlacesError, match="postprocessed.csv, line 3: easting is 'east'"):
        load_places(tmp_path, "train")
    (table.parent / "raw.csv").unlink()
    with pytest.raises(PlacesError, match="raw.csv: there is no such file"):
        load_places(tmp_path, "train")


def test_gsv_cities_asks_for_the_newest_image_of_every_place(tmp_path):
    write_gsv_city(tmp_path, "Boston", 42.35, -71.06, range(1, 24))
    places = load_places(tmp_path, "train")
    assert len(places.queries) == 22 and len(places.database) == 66, "place 20 is for validation"
    assert places.queries.files[0].name.startswith("Boston_0000001_2019_11_045_42.351_-71.05999_pano-1_1")
    assert all(file.is_file() and file.suffix == ".JPG" for file in places.queries.files)
    expected = to_metres(np.array([[42.351, -71.06 + 0.00001]]), "19N")[0]
    assert np.allclose(places.queries.positions[0], expected, atol=1e-6)
    near = Neighbourhood.of_places(places, 10.0, 25.0)
    assert near.positives[1].tolist() == [3, 4, 5] and (near.positives.counts() == 3).all()
    val = load_places(tmp_path, "val")
    assert [file.name.split("_")[1] for file in val.queries.files] == ["0000020"]


def test_gsv_cities_puts_every_city_into_its_zone(tmp_path):
    write_gsv_city(tmp_path, "Boston", 42.35, -71.06, [1, 2])
    write_gsv_city(tmp_path, "Rome", 41.9, 12.48, [1, 2])
    places = load_places(tmp_path, "train")
    assert len(places.queries) == 4
    for row, latlon in ((0, (42.351, -71.05999)), (2, (41.901, 12.48001))):
        assert np.allclose(places.queries.positions[row], to_metres(np.array([latlon]))[0], atol=1e-6)


def test_gsv_cities_says_what_is_wrong(tmp_path):
    write_gsv_city(tmp_path, "Boston", 42.35, -71.06, [1, 2])
    with pytest.raises(PlacesError, match="there is no test. Evaluate on another"):
        load_places(tmp_path)
    with pytest.raises(PlacesError, match="no place with at least two images in the split val"):
        load_places(tmp_path, "val")
    table = tmp_path / "Dataframes/Boston.csv"
    text = table.read_text()
    table.write_text(text.replace(",2008,", ",twenty,", 1))
    with pytest.raises(PlacesError, match="Boston.csv, line 2: .*year 'twenty'.* expected numbers"):
        load_places(tmp_path, "train")
    table.write_text(text.replace("42.351", "142.351"))
    with pytest.raises(PlacesError, match="Boston.csv"):
        load_places(tmp_path, "train")
    table.write_text(text)
    shutil.rmtree(tmp_path / "Images/Boston")
    (tmp_path / "Images/Rome").mkdir()
    with pytest.raises(PlacesError, match="none of the tables in Dataframes has a folder"):
        load_places(tmp_path, "train")


def test_what_no_format_recognises_lists_what_was_looked_for(tmp_path):
    for path, what in ((tmp_path, "no data set in this folder"), (tmp_path / "x", "no such file or folder")):
        with pytest.raises(PlacesError) as error:
            load_places(path)
        for expected in (what, "images/SPLIT", "SET_SPLIT.mat", "MSLS", "GSV-Cities", "CSV file"):
            assert expected in str(error.value)
        assert not is_data_set(path)


def test_evaluating_tokyo_247_suppresses_panoramas_and_counts_by_condition(tmp_path, run, tiny_network):
    save_network(tmp_path / "tiny.safetensors", tiny_network)
    mat = write_tokyo247(tmp_path / "tokyo247")
    arguments = ("--data", mat, "--weights", tmp_path / "tiny.safetensors", "--query-shorter-side", 96)
    code, out, err = run("evaluate", *arguments, "--keep-size", "--nms", "--json", "--out", tmp_path / "out")
    assert code == 0, err
    result = json.loads(out)
    assert result["recalls"]["5"] == 1.0 and result["query_size"] == 96
    assert list(result["recalls_by_condition"]) == ["day", "sunset", "night"]
    assert result["recalls_by_condition"]["night"]["5"] == 1.0
    with (tmp_path / "out/predictions.csv").open() as lines:
        found = [line["file"] for line in csv.DictReader(lines) if line["query"].endswith("00001.jpg")]
    assert sorted(file.rpartition("_012_")[0].rpartition("/")[2] for file in found) == ["one", "three", "two"]
    assert run("report", tmp_path / "out", "--out", tmp_path / "page")[0] == 0


def test_evaluating_tokyo_time_machine_drops_the_querys_own_time(tmp_path, tiny_network):
    places = load_places(write_tokyo_tm(tmp_path, "val"), "val")
    result = evaluate(Model(tiny_network, size=None), places, scoring=Scoring(recalls=(1, 5)))
    stamps = places.database.time_stamps[result.predictions]
    assert (stamps != places.queries.time_stamps[:, None])[result.predictions >= 0].all()
    assert (result.num_positives == 2).all()
    with pytest.raises(UserError, match="leave --nms out"):
        evaluate(Model(tiny_network, size=None), places, scoring=Scoring(nms=True))


def test_a_report_finds_a_data_set_given_by_the_beginning_of_its_name(tmp_path, run, tiny_network):
    save_network(tmp_path / "tiny.safetensors", tiny_network, {"image_size": [48, 64]})
    write_pittsburgh(tmp_path, "test")
    arguments = ("--data", tmp_path / "datasets/pitts30k", "--weights", tmp_path / "tiny.safetensors")
    assert run("evaluate", *arguments, "--out", tmp_path / "out")[0] == 0
    code, _, err = run("report", tmp_path / "out", "--out", tmp_path / "page")
    assert code == 0, err


def test_a_network_is_trained_on_mat_files(tmp_path, run):
    for split in ("train", "val"):
        write_tokyo_tm(tmp_path, split)
    shutil.move(tmp_path / "tokyoTM", tmp_path / "TokyoTM")
    flags = (
        "--backbone tiny --clusters 4 --height 48 --width 64 --jitter , --init-images 8 --init-features 100 "
        "--generations 1 --epochs 1 --refresh-every 4 --tuples-per-step 2 --tuple-negatives 3 --device cpu"
    ).split()
    code, out, err = run("train", "--data", tmp_path / "tokyoTM", "--out", tmp_path / "run", *flags)
    assert code == 0, err
    assert "generation 1, epoch 1" in out and (tmp_path / "run/generation_1/best.safetensors").is_file()
