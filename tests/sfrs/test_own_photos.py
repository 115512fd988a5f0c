"""Photographs as people have them: from anywhere on earth, with tracks and tables."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from pictures import write_photo

from sfrs.data.coordinates import in_own_zone, metres_between, to_degrees, to_metres, to_system, within
from sfrs.data.exif import taken
from sfrs.data.photos import Locator, Photo, Sources
from sfrs.data.places import load_places
from sfrs.data.track import Track, clock_of
from sfrs.models.model import Model
from sfrs.retrieval.index import Adding, Index
from sfrs.runtime.errors import UserError

BERLIN, TOKYO, SYDNEY = (52.52, 13.405), (35.68, 139.77), (-33.87, 151.21)


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
    write_photo(tmp_path / "photos/a.jpg", BERLIN, scene=0)
    write_photo(tmp_path / "photos/b.jpg", TOKYO, scene=3)
    index = Index.build(tmp_path / "photos", Model(tiny_network), out=tmp_path / "x.index")
    assert index.zone == "33N+54N"
    asked = write_photo(tmp_path / "query.jpg", (TOKYO[0], TOKYO[1] + 0.0001), scene=3)
    found = index.locate(asked)
    easting, northing = to_metres([TOKYO], "54N")[0][0]
    answer = found.as_json()
    assert answer["zone"] == "54N" and answer["location"]["easting"] == pytest.approx(easting, abs=0.01)
    assert answer["location"]["latitude"] == pytest.approx(TOKYO[0], abs=1e-6)
    assert found.error == pytest.approx(9.05, abs=0.1) and "(UTM 54N)" in found.lines()[0]
    assert answer["matches"][1]["zone"] == "33N" and answer["matches"][1]["away"] > 8e6
    assert answer["location"]["x"] == pytest.approx(index.positions[1][0], abs=0.01)
    # Later additions go on with the system.
    write_photo(tmp_path / "more/c.jpg", (40.71, -74.0), scene=5)
    again = Index.build(tmp_path / "more", out=tmp_path / "x.index")
    assert again.zone == "33N+54N+18N" and np.array_equal(again.positions[:2], index.positions)
    truth = index.locate(tmp_path / "more/c.jpg")
    assert truth.truth.longitude == pytest.approx(-74.0) and truth.error > 6e6


# Unplaced and unreadable photographs


def test_one_photo_of_many_does_not_end_the_work(tiny_network, tmp_path, run):
    for i in range(4):
        write_photo(tmp_path / f"photos/{i}.jpg", (BERLIN[0], BERLIN[1] + i / 1e4), scene=i)
    unplaced = write_photo(tmp_path / "photos/none.jpg")
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
    locate = Locator(Sources(track=str(track))).locate
    halfway = write_photo(tmp_path / "a.jpg", time="2024:05:01 14:00:50", offset="+02:00")
    assert locate(Photo(halfway)).degrees == pytest.approx((52.0005, 13.0))
    gap = write_photo(tmp_path / "b.jpg", time="2024:05:01 12:08:00", offset="+00:00")
    late = write_photo(tmp_path / "c.jpg", time="2024:05:01 13:00:00", offset="+00:00")
    own = write_photo(tmp_path / "d.jpg", BERLIN, time="2024:05:01 14:00:50", offset="+02:00")
    assert locate(Photo(gap)).degrees is None and locate(Photo(late)).degrees is None
    assert locate(Photo(own)).degrees == pytest.approx(BERLIN), "EXIF goes before the track"
    local = write_photo(tmp_path / "e.jpg", time="2024:05:01 14:01:27")
    with pytest.raises(UserError, match="e.jpg: .* without an offset from UTC.*--clock"):
        locate(Photo(local))
    for clock in ("+02:00:37", "Europe/Berlin"):
        fast = Locator(Sources(track=str(track), clock=clock)).locate(Photo(local))
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
    assert taken(write_photo(tmp_path / "a.jpg", time="2024:05:01 14:00:50")) == datetime(
        2024, 5, 1, 14, 0, 50
    )
    assert taken(
        write_photo(tmp_path / "b.jpg", time="2024:05:01 14:00:50", offset="+02:00")
    ).utcoffset() == timedelta(hours=2)
    assert taken(write_photo(tmp_path / "c.jpg", time="    :  :     :  :  ")) is None


# Tables


def test_a_table_places_photographs_by_the_end_of_their_path(tmp_path):
    for folder in "ab":
        write_photo(tmp_path / f"photos/{folder}/1.jpg", BERLIN)
    table = tmp_path / "where.csv"
    table.write_text("Filename,Lat,Lon\na/1.jpg,48.0,9.0\nb/1.jpg,49.0,9.0\n")
    locate = Locator(Sources(positions=str(table))).locate
    assert [locate(Photo(tmp_path / f"photos/{folder}/1.jpg")).degrees for folder in "ab"] == [
        (48.0, 9.0),
        (49.0, 9.0),
    ]
    with pytest.raises(UserError, match="where.csv: it names none of the 1 photographs, as .*c/1.jpg"):
        Locator(Sources(positions=str(table))).all([write_photo(tmp_path / "photos/c/1.jpg")])


def test_a_manifest_takes_degrees_and_zones(tmp_path):
    manifest = tmp_path / "town.csv"
    manifest.write_text(
        "file,role,easting,northing,zone,latitude,longitude\na.jpg,database,,,,52.0,11.99995\n"
        "b.jpg,query,294074.51,5765288.11,33N,,\n"
    )
    places = load_places(manifest)
    assert within(places.queries.positions, places.database.positions, 7).counts().tolist() == [1]
