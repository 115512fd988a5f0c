"""Photographs as people have them: from anywhere on earth, with tracks and tables, in folders to be split."""

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from pictures import picture
from PIL import ExifTags, Image
from tiny_town import OPTIONS

from sfrs.data.coordinates import in_own_zone, metres_between, to_degrees, to_metres, to_system, within
from sfrs.data.exif import taken
from sfrs.data.photos import Locator, Sources
from sfrs.data.places import PlacesError, load_places
from sfrs.data.track import Track, clock_of
from sfrs.models.model import Model
from sfrs.retrieval.index import Adding, Index
from sfrs.runtime.errors import UserError

BERLIN, TOKYO, SYDNEY = (52.52, 13.405), (35.68, 139.77), (-33.87, 151.21)


def photo(file, degrees=None, time="", offset="", scene=0):
    """Write a photograph with GPS and the time of its camera's clock in EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    if degrees:
        (latitude, longitude), gps = degrees, exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps.update({1: "NS"[latitude < 0], 2: (abs(latitude), 0, 0), 3: "EW"[longitude < 0]})
        gps[4] = (abs(longitude), 0, 0)
    block = exif.get_ifd(ExifTags.IFD.Exif)
    block.update({0x9003: time} if time else {})
    block.update({0x9011: offset} if offset else {})
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(scene).save(file, quality=95, exif=exif)
    return file


# Systems of several zones


def test_points_of_all_the_earth_fit_one_system():
    degrees = np.array([BERLIN, TOKYO, SYDNEY, (np.nan, np.nan), (52.5200, 13.4051)])
    metres, system = to_system(degrees)
    assert system == "33N+54N" and np.isnan(metres[3]).all(), "zone 54 reaches Sydney's 151 degrees east"
    assert np.nanmax(np.abs(to_degrees(metres, system) - degrees)) < 1e-9
    assert metres_between(metres[0], metres[4], system) == pytest.approx(6.8, abs=0.1)
    assert metres_between(metres[0], metres[1], system) == pytest.approx(8.94e6, rel=0.01)
    assert in_own_zone(tuple(metres[1]), system)[2] == "54N"
    assert in_own_zone(tuple(metres[1]), system)[:2] == pytest.approx(to_metres([TOKYO], "54N")[0][0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0.00001, 179.99999), (-0.00001, -179.99999)),  # the antimeridian, and the equator with it
        ((52.0, 11.99997), (52.0, 12.00003)),  # a border of zones
        ((48.0, 22.3953), (48.0, 22.3954)),  # as far as zone 32 reaches, after the first point
    ],
)
def test_neighbours_across_any_border_are_near(one, other):
    metres, system = to_system(np.array([(48.0, 9.0), one, other, TOKYO]))
    assert within(metres[1:2], metres[2:], 25).counts().tolist() == [1], system


def test_an_index_of_two_continents_locates_in_both(tiny_network, tmp_path):
    photo(tmp_path / "photos/a.jpg", BERLIN, scene=0)
    photo(tmp_path / "photos/b.jpg", TOKYO, scene=3)
    index = Index.build(tmp_path / "photos", Model(tiny_network), out=tmp_path / "x.index")
    assert index.zone == "33N+54N"
    asked = photo(tmp_path / "query.jpg", (TOKYO[0], TOKYO[1] + 0.0001), scene=3)
    found = index.locate(asked)
    easting, northing = to_metres([TOKYO], "54N")[0][0]
    answer = found.as_json()
    assert answer["zone"] == "54N" and answer["location"]["easting"] == pytest.approx(easting, abs=0.01)
    assert answer["location"]["latitude"] == pytest.approx(TOKYO[0], abs=1e-6)
    assert found.error == pytest.approx(9.05, abs=0.1) and "(UTM 54N)" in found.lines()[0]
    assert answer["matches"][1]["zone"] == "33N" and answer["matches"][1]["away"] > 8e6
    assert answer["location"]["x"] == pytest.approx(index.positions[1][0], abs=0.01)
    # Later additions go on with the system.
    photo(tmp_path / "more/c.jpg", (40.71, -74.0), scene=5)
    again = Index.build(tmp_path / "more", out=tmp_path / "x.index")
    assert again.zone == "33N+54N+18N" and np.array_equal(again.positions[:2], index.positions)
    truth = index.locate(tmp_path / "more/c.jpg")
    assert truth.truth.longitude == pytest.approx(-74.0) and truth.error > 6e6


# Unplaced and unreadable photographs


def test_one_photo_of_many_does_not_end_the_work(tiny_network, tmp_path, run):
    for i in range(4):
        photo(tmp_path / f"photos/{i}.jpg", (BERLIN[0], BERLIN[1] + i / 1e4), scene=i)
    unplaced = photo(tmp_path / "photos/none.jpg")
    (tmp_path / "photos/bad.jpg").write_text("no picture")
    model = Model(tiny_network)
    with pytest.raises(UserError, match="bad.jpg") as error:
        Index.build(tmp_path / "photos", model, out=tmp_path / "x.index")
    assert error.value.skip == "skip_bad_images"
    adding = Adding(skip_bad_images=True)
    with pytest.raises(UserError, match="none.jpg.*--skip-unplaced leaves them out, --allow-unplaced"):
        Index.build(tmp_path / "photos", model, out=tmp_path / "x.index", adding=adding)
    adding = Adding(skip_bad_images=True, skip_unplaced=True)
    index = Index.build(tmp_path / "photos", model, out=tmp_path / "x.index", adding=adding)
    assert len(index) == 4 and {file.name for file, _ in index.change.skipped} == {"none.jpg", "bad.jpg"}
    code, _, err = run("locate", tmp_path / "photos", "--index", tmp_path / "x.index")
    assert code == 2 and "bad.jpg" in err and "--skip-bad-images leaves such images out." in err
    unplaced.unlink()
    code, _, err = run("data", "check", tmp_path / "photos", "--hold-out", "every:2")
    assert "bad.jpg" in err + _


# Tracks


def gpx(file, *points, start=datetime(2024, 5, 1, 12, tzinfo=timezone.utc)):
    """Write a track of (seconds after noon UTC, latitude, longitude)."""
    lines = [
        f'<trkpt lat="{lat}" lon="{lon}"><ele>3</ele>'
        f"<time>{start + timedelta(seconds=s):%Y-%m-%dT%H:%M:%SZ}</time></trkpt>"
        for s, lat, lon in points
    ]
    text = (
        f'<gpx xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>{"".join(lines)}</trkseg></trk></gpx>'
    )
    file.write_text(text)
    return file


def test_a_track_places_photographs_by_their_time(tmp_path):
    track = gpx(
        tmp_path / "walk.gpx", (0, 52.0, 13.0), (100, 52.001, 13.0), (1000, 52.001, 13.1), (1060, 52.0, 13.2)
    )
    locate = Locator(Sources(track=str(track)))
    halfway = photo(tmp_path / "a.jpg", time="2024:05:01 14:00:50", offset="+02:00")
    assert locate(halfway).degrees == pytest.approx((52.0005, 13.0))
    gap = photo(tmp_path / "b.jpg", time="2024:05:01 12:08:00", offset="+00:00")
    late = photo(tmp_path / "c.jpg", time="2024:05:01 13:00:00", offset="+00:00")
    own = photo(tmp_path / "d.jpg", BERLIN, time="2024:05:01 14:00:50", offset="+02:00")
    assert locate(gap).degrees is None and locate(late).degrees is None
    assert locate(own).degrees == pytest.approx(BERLIN), "EXIF goes before the track"
    local = photo(tmp_path / "e.jpg", time="2024:05:01 14:01:27")
    with pytest.raises(UserError, match="e.jpg: .* without an offset from UTC.*--clock"):
        locate(local)
    for clock in ("+02:00:37", "Europe/Berlin"):
        fast = Locator(Sources(track=str(track), clock=clock))(local)
        assert fast.degrees == pytest.approx((52.0005 if clock[0] == "+" else 52.00087, 13.0), abs=1e-5)


def test_a_track_goes_the_short_way_round_the_earth(tmp_path):
    track = Track(gpx(tmp_path / "x.gpx", (0, 0.0, 179.9999), (10, 0.0, -179.9999)))
    assert track.at(datetime(2024, 5, 1, 12, 0, 5, tzinfo=timezone.utc))[1] == pytest.approx(-180)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><gpx>&b;</gpx>',
            "defines entities or a document type",
        ),
        ("<gpx><trk>", "cannot be read"),
        ("<gpx></gpx>", "no point of a track"),
        ('<gpx><trkpt lat="91" lon="0"><time>2024-05-01T12:00:00Z</time></trkpt></gpx>', "line 1: .*'91'"),
        ('<gpx><trkpt lat="1" lon="0"><time>noon</time></trkpt></gpx>', "line 1: .*noon"),
    ],
)
def test_a_wrong_track_is_named(tmp_path, text, message):
    (tmp_path / "x.gpx").write_text(text)
    with pytest.raises(UserError, match=message):
        Track(tmp_path / "x.gpx")


@pytest.mark.parametrize("text", ["+25:00", "noon", "Europe/Nowhere", "../etc"])
def test_a_wrong_clock_is_named(text):
    with pytest.raises(UserError, match="--clock is"):
        clock_of(text)


def test_times_of_exif_keep_their_offset(tmp_path):
    assert taken(photo(tmp_path / "a.jpg", time="2024:05:01 14:00:50")) == datetime(2024, 5, 1, 14, 0, 50)
    assert taken(
        photo(tmp_path / "b.jpg", time="2024:05:01 14:00:50", offset="+02:00")
    ).utcoffset() == timedelta(hours=2)
    assert taken(photo(tmp_path / "c.jpg", time="    :  :     :  :  ")) is None


# Tables


def test_a_table_places_photographs_by_the_end_of_their_path(tmp_path):
    for folder in "ab":
        photo(tmp_path / f"photos/{folder}/1.jpg", BERLIN)
    table = tmp_path / "where.csv"
    table.write_text("Filename,Lat,Lon\na/1.jpg,48.0,9.0\nb/1.jpg,49.0,9.0\n")
    locate = Locator(Sources(positions=str(table)))
    assert [locate(tmp_path / f"photos/{folder}/1.jpg").degrees for folder in "ab"] == [
        (48.0, 9.0),
        (49.0, 9.0),
    ]
    with pytest.raises(UserError, match="where.csv: it names none of the 1 photographs, as .*c/1.jpg"):
        Locator(Sources(positions=str(table))).all([photo(tmp_path / "photos/c/1.jpg")])


def test_a_manifest_takes_degrees_and_zones(tmp_path):
    manifest = tmp_path / "town.csv"
    manifest.write_text(
        "file,role,easting,northing,zone,latitude,longitude\na.jpg,database,,,,52.0,11.99995\n"
        "b.jpg,query,294074.51,5765288.11,33N,,\n"
    )
    places = load_places(manifest)
    assert within(places.queries.positions, places.database.positions, 7).counts().tolist() == [1]


# Data sets as people have them


def town(folder, role, count=6, step=20):
    for i in range(count):
        east = 500_000 + step * i + 3 * (role != "database")
        photo(folder / f"@{east}@4000000@{i}@.jpg", scene=i)
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
        photo(tmp_path / f"@{east}@{4000000 + i // 20}@{i:02d}@.jpg", time=time)
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
        photo(tmp_path / role / "a.jpg", where)
    places = load_places(tmp_path / "database", queries=str(tmp_path / "queries"))
    assert places.zone == "33N+54N" and places.metres(0, 0) == pytest.approx(8.94e6, rel=0.01)


def test_frames_are_right_by_their_number(tmp_path):
    for role in ("database", "queries"):
        for i in range(6):
            photo(tmp_path / role / f"{i:03d}.jpg", scene=i)
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
        photo(
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
