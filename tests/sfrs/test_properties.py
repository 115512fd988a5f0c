"""Promises of parsers, lists and coordinates over generated inputs."""

import csv
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyproj import Geod

from sfrs.commands.options import parse_size
from sfrs.data.coordinates import (
    APART,
    eastward_shifts,
    metres_between,
    nearest,
    parse_zone,
    to_degrees,
    to_metres,
    within,
    zone_at,
    zone_of_band,
)
from sfrs.data.photos import from_name
from sfrs.data.places import PlacesError, load_places
from sfrs.data.ragged import Ragged
from sfrs.runtime.errors import UserError
from sfrs.training.config import ConfigError, TrainConfig

properties = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
METRES = st.floats(-1e7, 1e7)
NUMBERS, HEMISPHERES = st.integers(1, 60), st.sampled_from("NS")
LATITUDES, LONGITUDES = st.floats(-79.9, 83.9), st.floats(-180, 180)
LISTS = st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=8)
POINTS = st.lists(st.tuples(st.integers(-60, 60), st.integers(-60, 60)), max_size=12)


@properties
@given(NUMBERS, HEMISPHERES, st.sampled_from(["{n}{h}", " {n} {l} ", "{n:02d}{h}", "EPSG:32{e}{n:02d}"]))
def test_every_way_to_write_a_zone_is_the_same_zone(n, h, form):
    assert parse_zone(form.format(n=n, h=h, l=h.lower(), e="67"[h == "S"])) == f"{n}{h}"


@properties
@given(st.text(string.printable, max_size=12))
def test_what_is_no_zone_is_refused_whatever_it_is(text):
    for parse in (parse_zone, lambda text: zone_of_band(text[:-1], text[-1:])):
        try:
            assert parse(text) in {f"{n}{h}" for n in range(1, 61) for h in "NS"}
        except UserError as error:
            assert "expected" in str(error)


@properties
@given(LATITUDES, LONGITUDES)
def test_degrees_come_back_from_metres(latitude, longitude):
    metres, zone = to_metres([[latitude, longitude]])
    assert zone == zone_at(latitude, longitude)
    back = to_degrees(metres, zone)[0]
    east = (back[1] - longitude + 180) % 360 - 180
    assert abs(back[0] - latitude) < 1e-8 and abs(east) * np.cos(np.radians(latitude)) < 1e-8


@properties
@given(LATITUDES, LONGITUDES, st.floats(-0.01, 0.01), st.floats(-0.01, 0.01))
def test_metres_of_a_zone_are_distances_on_earth_to_a_thousandth(latitude, longitude, north, east):
    points = [[latitude, longitude], [latitude + north, longitude + east]]
    assume(abs(points[1][1]) <= 180)
    metres, _ = to_metres(points)
    _, _, geodesic = Geod(ellps="WGS84").inv(longitude, latitude, points[1][1], points[1][0])
    assert metres_between(*metres) == pytest.approx(geodesic, rel=2.5e-3, abs=1e-3)


@properties
@given(POINTS, POINTS, st.sampled_from([0.0, 5.0, 13.0, 25.0]))
def test_neighbours_are_those_of_all_pairs(queries, database, radius):
    queries, database = (np.array(p, dtype=np.float64).reshape(-1, 2) for p in (queries, database))
    apart = metres_between(queries[:, None], database)
    near = within(queries, database, radius)
    assert len(near) == len(queries)
    assert [row.tolist() for row in near] == [np.flatnonzero(row <= radius).tolist() for row in apart]
    if len(queries) and len(database):
        assert nearest(queries, database).tolist() == pytest.approx(apart.min(axis=1).tolist())


@properties
@given(LISTS, st.data())
def test_ragged_lists_are_the_lists_they_were_made_of(lists, data):
    ragged = Ragged.from_lists(lists)
    assert [row.tolist() for row in ragged] == lists
    assert ragged.counts().tolist() == [len(items) for items in lists]
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(ragged.values), max_size=len(ragged.values))), bool
    )
    kept, flags = ragged.keep(mask), iter(mask)
    assert [row.tolist() for row in kept] == [[item for item in items if next(flags)] for items in lists]


@properties
@given(st.lists(st.lists(st.tuples(METRES, METRES), min_size=1, max_size=4), max_size=5))
def test_cities_lie_apart_after_their_shifts(cities):
    named = {str(i): np.array(points) for i, points in enumerate(cities)}
    shifts = eastward_shifts(named)
    moved = [points + (shifts[name], 0) for name, points in named.items()]
    for i, one in enumerate(moved):
        for other in moved[:i]:
            gaps = np.maximum(one.min(0) - other.max(0), other.min(0) - one.max(0))
            assert gaps.max() > APART - 1e-6


@properties
@given(METRES, METRES, NUMBERS, st.sampled_from("CDEFGHJKLMNPQRSTUVWX"))
def test_names_say_metres_and_zone(easting, northing, number, band):
    fields = [repr(easting), repr(northing), number, band, *"abcdefghij"]
    photo = from_name(Path("@" + "@".join(map(str, fields)) + "@.jpg"))
    assert photo.metres == (easting, northing)
    assert photo.zone == f"{number}{'N' if band >= 'N' else 'S'}"


LINES = st.lists(
    st.tuples(
        st.text(string.ascii_letters + string.digits + "äß,;\"' ._-", min_size=1).filter(str.strip),
        st.sampled_from(["database", "gallery", "query", "Queries"]),
        METRES,
        METRES,
        st.sampled_from(["", "train", "test"]),
    ),
    max_size=6,
)


@properties
@given(LINES)
def test_a_manifest_is_read_as_it_was_written(tmp_path, lines):
    path = tmp_path / "town.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("file", "role", "easting", "northing", "split"), *lines])
    asked = [line for line in lines if line[4] in ("", "test")]
    roles = {
        role: [line for line in asked if (line[1].lower()[0] == "q") == (role == "queries")]
        for role in ("database", "queries")
    }
    if not all(roles.values()):
        with pytest.raises(PlacesError, match="in the split test"):
            load_places(path)
        return
    places = load_places(path)
    for role, expected in roles.items():
        found = getattr(places, role)
        assert found.files == tuple(tmp_path / line[0] for line in expected)
        assert found.positions.tolist() == [[line[2], line[3]] for line in expected]


@properties
@given(st.binary(max_size=60), st.booleans())
def test_a_damaged_manifest_is_refused_in_words(tmp_path, content, with_head):
    path: Path = tmp_path / "town.csv"
    path.write_bytes(b"file,role,easting,northing\n" * with_head + content)
    with pytest.raises(PlacesError, match="town.csv"):
        load_places(path)


@properties
@given(st.integers(0, 9999), st.integers(0, 9999), st.sampled_from("xX"))
def test_sizes_are_height_and_width(height, width, x):
    text = f"{height}{x}{width}"
    if min(height, width) >= 16:
        assert parse_size("--size", text, 16) == (height, width)
    else:
        with pytest.raises(UserError, match=f"--size is '{text}'; expected HEIGHTxWIDTH"):
            parse_size("--size", text, 16)


@properties
@given(st.from_regex(r"[0-9xX*, -]{0,9}", fullmatch=True))
def test_what_is_no_size_is_refused_whatever_it_is(text):
    try:
        size = parse_size("--size", text, 16)
    except UserError as error:
        assert "expected HEIGHTxWIDTH" in str(error)
    else:
        assert size == tuple(map(int, text.lower().split("x")))


PARTS = st.lists(st.sampled_from(["ram", "gpu", "disk", "off", "jitter=", "3", "0", ",", " "]), max_size=5)


@properties
@given(PARTS.map("".join))
def test_a_cache_is_a_place_and_variants_or_refused_by_name(text):
    place, _, variants = text.replace(" ", "").rpartition("jitter=")
    plain = text.replace(" ", "") in ("ram", "gpu", "disk", "off")
    jittered = place in ("", "ram,", "gpu,", "disk,") and variants.isdigit() and variants.strip("0") != ""
    if plain or jittered and "jitter=" in text:
        assert TrainConfig(trunk_cache=text).trunk_cache == text
    else:
        with pytest.raises(ConfigError, match="trunk_cache"):
            TrainConfig(trunk_cache=text)
