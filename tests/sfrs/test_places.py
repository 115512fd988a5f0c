import warnings
from pathlib import Path

import numpy as np
import pytest

from sfrs.data.coordinates import eastward_shifts, within
from sfrs.data.places import CoordinatesWarning, ImageSet, PlacesError, load_places
from sfrs.data.ragged import Ragged


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def folder_of(root: Path, database: list[str], queries: list[str]) -> Path:
    touch(root, *(f"images/test/database/{name}" for name in database))
    touch(root, *(f"images/test/queries/{name}" for name in queries))
    return root


def test_folder_reads_fields_1_and_2_as_metres(tmp_path):
    places = load_places(folder_of(tmp_path / "town", ["@0386531.34@6174119.45@25@.jpg"], ["@1@-2.5@.jpg"]))
    assert places.name == "town" and places.split == "test"
    assert places.database.positions.tolist() == [[386531.34, 6174119.45]]
    assert places.queries.positions.tolist() == [[1.0, -2.5]]
    assert places.database.positions.dtype == np.float64


def test_folder_takes_subfolders_and_suffixes_in_any_case(tmp_path):
    names = ["@0@0@.JPG", "a/@30@0@.jpeg", "a/b/@60@0@.Png", "notes.txt", "@90@0@.tif", "._@9@0@.jpg"]
    places = load_places(folder_of(tmp_path, names, ["@0@0@.jpg"]))
    assert sorted(file.name for file in places.database.files) == [
        "@0@0@.JPG",
        "@30@0@.jpeg",
        "@60@0@.Png",
        "@90@0@.tif",
    ]


def test_folder_order_does_not_depend_on_the_file_system(tmp_path):
    places = load_places(folder_of(tmp_path, ["@9@0@.jpg", "@1@0@.jpg", "@5@0@.jpg"], ["@0@0@.jpg"]))
    assert places.database.positions[:, 0].tolist() == [1, 5, 9]


@pytest.mark.parametrize("name", ["photo.jpg", "@12@.jpg", "@east@north@.jpg", "@nan@0@.jpg", "@1@inf@.jpg"])
def test_folder_names_the_file_whose_coordinates_are_wrong(tmp_path, name):
    folder_of(tmp_path, ["@0@0@.jpg", name], ["@0@0@.jpg"])
    with pytest.raises(PlacesError) as error:
        load_places(tmp_path)
    assert name in str(error.value) and "easting and northing" in str(error.value)


def test_missing_data_names_what_is_missing(tmp_path):
    with pytest.raises(PlacesError, match="nowhere: there is no such file or folder"):
        load_places(tmp_path / "nowhere")
    folder_of(tmp_path, ["@0@0@.jpg"], ["@0@0@.jpg"])
    with pytest.raises(PlacesError, match="has the splits test"):
        load_places(tmp_path, "train")
    touch(tmp_path, "images/val/database/@0@0@.jpg")
    with pytest.raises(PlacesError, match="val/queries: there is no such folder"):
        load_places(tmp_path, "val")
    (tmp_path / "images/val/queries").mkdir()
    with pytest.raises(PlacesError, match="val/queries: no images"):
        load_places(tmp_path, "val")


def test_images_of_one_position_share_a_place_id(tmp_path):
    places = load_places(folder_of(tmp_path, ["@0@0@a@.jpg", "@0@0@b@.jpg", "@0@30@c@.jpg"], ["@0@0@.jpg"]))
    a, b, c = places.database.place_ids
    assert a == b != c
    assert places.queries.place_ids[0] not in (a, c), "a query at the same spot is another recording"


def test_panorama_field_of_the_full_form_tells_recordings_apart(tmp_path):
    full = "@0@0@33@N@0@0@{}@{}@90@0@0@0@20140601_120000@@.jpg"
    database = [full.format("pano1", 0), full.format("pano1", 1), full.format("pano2", 0)]
    places = load_places(folder_of(tmp_path, database, [full.format("pano2", 5)]))
    first, second, other = places.database.place_ids
    assert first == second != other
    assert places.queries.place_ids[0] == other, "the query is cut from that very panorama"


def test_degrees_are_warned_about_and_metres_are_not(tmp_path):
    degrees = folder_of(
        tmp_path / "degrees", ["@13.19@55.70@.jpg", "@13.1904@55.7002@.jpg"], ["@13.19@55.70@.jpg"]
    )
    with pytest.warns(CoordinatesWarning, match="look like degrees"):
        load_places(degrees)
    metres = folder_of(tmp_path / "metres", ["@0@0@.jpg", "@10@0@.jpg", "@20@5@.jpg"], ["@3@0@.jpg"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_places(metres)


def test_manifest_reads_relative_to_its_own_folder(tmp_path, monkeypatch):
    manifest = tmp_path / "sets/town.csv"
    touch(tmp_path, "sets/town.csv")
    manifest.write_text(
        "\ufefffile, role, easting, northing, split, weather\n"
        "a.jpg, database, 100, 200, test, rain\n"
        "sub/b.jpg, query, 101.5, 200, test, sun\n"
        "c.jpg, database, 0, 0, train, sun\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    places = load_places("sets/town.csv")
    assert places.name == "town"
    assert places.database.files == (Path("sets/a.jpg"),)
    assert places.queries.files == (Path("sets/sub/b.jpg"),)
    assert places.queries.positions.tolist() == [[101.5, 200.0]]


def test_a_manifest_without_splits_serves_any_and_reads_conditions(tmp_path):
    manifest = tmp_path / "town.csv"
    manifest.write_text(
        "file,role,easting,northing,condition\na.jpg,database,1,2,\nb.jpg,query,3,4,night\nc.jpg,query,5,6,\n"
    )
    places = load_places(manifest, "val")
    assert places.queries.conditions == ("night", "") and places.database.conditions == ()
    assert places.queries.subset(np.array([True, False])).conditions == ("night",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,role,easting\na.jpg,database,1\n", "easting is '1' and northing None"),
        ("", "no column file, role"),
        ("file,role,easting,northing\na.jpg,gallary,1,2\n", "line 2: role is 'gallary'"),
        ("file,role,easting,northing\na.jpg,query,1,two\n", "line 2: easting is '1' and northing 'two'"),
        ("file,role,easting,northing\na.jpg,query,1\n", "northing None"),
        ("file,role,easting,northing\n,query,1,2\n", "line 2: the file column is empty"),
        (
            "file,role,easting,northing\na\0.jpg,query,1,2\n",
            "a null byte is in no file's name",
        ),
        ("file,role,easting,northing\na.jpg,query,1e300,2\n", "line 2: easting is '1e300' and northing '2'"),
        ("file,role,easting,northing\na.jpg,query,1,2\n", "no database in the split test"),
        ("file,role,easting,northing,split\na.jpg,query,1,2,train\n", "split column has train"),
    ],
)
def test_manifest_names_the_line_or_column_that_is_wrong(tmp_path, text, message):
    manifest = tmp_path / "town.csv"
    manifest.write_text(text)
    with pytest.raises(PlacesError) as error:
        load_places(manifest)
    assert message in str(error.value) and "town.csv" in str(error.value)


def test_within_lists_the_database_in_order_radius_included():
    database = np.array([[30.0, 0], [25.0, 0], [0.0, 0], [25.0001, 0]])
    near = within(np.array([[0.0, 0], [1000.0, 0], [30.0, 0]]), database, 25)
    assert [near[i].tolist() for i in range(3)] == [[1, 2], [], [0, 1, 3]]
    assert near.counts().tolist() == [2, 0, 3] and len(near) == 3
    assert near.values.dtype == near.offsets.dtype == np.int64


def test_within_an_empty_database_is_empty():
    near = within(np.zeros((3, 2)), np.zeros((0, 2)), 25)
    assert near.counts().tolist() == [0, 0, 0]


def test_ragged_indexes_like_a_list():
    ragged = Ragged.from_lists([[1, 2], [], [3]])
    assert ragged[-1].tolist() == [3] and [row.tolist() for row in ragged] == [[1, 2], [], [3]]
    assert ragged.rows().tolist() == [0, 0, 2]
    with pytest.raises(IndexError):
        ragged[3]


@pytest.mark.parametrize("wrong", [dict(conditions=("day",)), dict(time_stamps=np.zeros(3, np.int64))])
def test_what_images_are_said_to_be_has_to_be_of_their_number(wrong):
    with pytest.raises(ValueError, match="2 files, but .* expected"):
        ImageSet((Path("a"), Path("b")), np.zeros((2, 2)), np.zeros(2, np.int64), **wrong)


def test_only_cities_that_lie_on_each_other_are_moved():
    square = np.array([[0.0, 0.0], [5_000.0, 5_000.0]])
    shifts = eastward_shifts({"a": square, "b": square + (20_000, 0), "c": square + (5_500, 0), "d": square})
    assert shifts == {"a": 0.0, "b": 0.0, "c": 2_000_000.0, "d": 4_000_000.0}


def full_name(easting: float, northing: float, zone: int, band: str) -> str:
    return f"@{easting:.2f}@{northing:.2f}@{zone}@{band}@@@@@@@@@@@.jpg"


@pytest.mark.parametrize(
    ("query", "database", "right"),
    [
        # The same metres of two zones are 400 km apart.
        (full_name(500_001, 5_800_000, 32, "U"), full_name(500_000, 5_800_000, 33, "U"), 0),
        # 52.0, 11.99995 and 52.0, 12.00005 are 6.9 m apart, on two sides of a zone's border.
        (full_name(705_925.49, 5_765_288.11, 32, "U"), full_name(294_074.51, 5_765_288.11, 33, "U"), 1),
        # Beyond the reach of the first zone, and of the other hemisphere: no neighbours, and no error.
        (full_name(500_001, 5_800_000, 32, "U"), full_name(500_000, 5_800_000, 54, "H"), 0),
    ],
)
def test_zones_of_names_decide_where_an_image_is(tmp_path, query, database, right):
    for role, name in (("queries", query), ("database", database)):
        (tmp_path / "images/test" / role).mkdir(parents=True)
        (tmp_path / "images/test" / role / name).touch()
    places = load_places(tmp_path)
    assert within(places.queries.positions, places.database.positions, 25).counts().tolist() == [right]
