"""Metres and degrees, and the coordinates cameras write."""

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from sfrs.data.coordinates import parse_zone, to_degrees, to_metres, zone_at, zone_of_band
from sfrs.data.exif import gps
from sfrs.data.images import BadImageError
from sfrs.runtime.errors import UserError

# A published example: easting, northing, zone, latitude, longitude.
CN_TOWER = (630084.0, 4833438.0, "17N", 43.642567, -79.387139)


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("33N", "33N"),
        ("33 n", "33N"),
        (" 7s ", "7S"),
        ("07S", "7S"),
        ("EPSG:32633", "33N"),
        ("epsg:32756", "56S"),
        ("60N", "60N"),
    ],
)
def test_zones_are_read_as_people_write_them(text, zone):
    assert parse_zone(text) == zone


@pytest.mark.parametrize(
    "text", ["", "N", "33", "0N", "61N", "33V", "EPSG:4326", "EPSG:32600", "EPSG:32661", "33NN"]
)
def test_what_is_no_zone_is_told_with_what_was_expected(text):
    with pytest.raises(UserError, match="is no UTM zone; expected its number from 1 to 60 and N or S"):
        parse_zone(text)


@pytest.mark.parametrize(
    ("number", "letter", "zone"),
    [
        (54, "S", "54N"),
        ("33", "u", "33N"),
        ("10", "S", "10N"),
        (56, "H", "56S"),
        (33, "N", "33N"),
        (33, "M", "33S"),
    ],
)
def test_bands_of_image_names_tell_the_hemisphere(number, letter, zone):
    assert zone_of_band(number, letter) == zone


@pytest.mark.parametrize(
    ("number", "letter"), [(0, "U"), (61, "U"), ("x", "U"), (33, "I"), (33, ""), (33, "UV")]
)
def test_what_is_no_band_is_refused(number, letter):
    with pytest.raises(UserError, match="expected"):
        zone_of_band(number, letter)


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone"),
    [
        (55.7, 13.19, "33N"),
        (-33.86, 151.21, "56S"),
        (60.39, 5.32, "32N"),  # Bergen: zone 32 reaches west
        (78.22, 15.65, "33N"),  # Svalbard: zones 32, 34, 36 are missing
        (78.22, 8.99, "31N"),
        (0.0, 180.0, "1N"),
        (1.0, 359.0, "30N"),
    ],
)
def test_points_lie_in_the_zones_of_the_map(latitude, longitude, zone):
    assert zone_at(latitude, longitude) == zone


def test_a_published_point_is_met():
    easting, northing, zone, latitude, longitude = CN_TOWER
    metres, found = to_metres([[latitude, longitude]])
    assert found == zone and np.abs(metres - [[easting, northing]]).max() < 1
    assert np.abs(to_degrees([[easting, northing]], zone) - [[latitude, longitude]]).max() < 2e-5


def test_all_points_come_into_one_zone_so_that_distances_hold():
    west, east = [55.0, 11.9999], [55.0, 12.0001]  # across the border of zones 32 and 33, 12.8 m apart
    metres, zone = to_metres([[np.nan, np.nan], west, east])
    assert zone == "32N" and np.isnan(metres[0]).all()
    assert np.linalg.norm(metres[2] - metres[1]) == pytest.approx(12.79, abs=0.05)
    assert to_metres([east], "32n")[1] == "32N"
    assert np.isnan(to_degrees(metres, zone)[0]).all()


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ([[91.0, 0.0]], "is no point on earth"),
        ([[55.0, 13.0], [48.0, 1000.0]], "48, 1000 is no point on earth"),
        ([[85.0, 0.0]], "UTM ends at"),
        ([[55.0, 13.0], [35.0, 139.0]], "35, 139 lies outside of UTM zone 33N"),
        ([[np.nan, 13.0]], "no UTM zone to take"),
    ],
)
def test_points_that_cannot_be_projected_are_named(degrees, message):
    with pytest.raises(UserError, match=message):
        to_metres(degrees)


def test_metres_of_another_region_are_refused():
    with pytest.raises(UserError, match="5000000, 0 lies outside of UTM zone 33N"):
        to_degrees([[500_000.0, 0.0], [5e6, 0.0]], "33N")


def photograph(path, fields):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"  # Pillow writes no EXIF to PNG files where this level is empty
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(fields)
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


LUND = {1: "N", 2: (55.0, 42.0, 20.5), 3: "E", 4: (13.0, 11.0, 30.0)}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_coordinates_are_read_from_exif(tmp_path, suffix):
    file = photograph(tmp_path / f"x{suffix}", LUND)
    assert gps(file) == pytest.approx((55 + 42 / 60 + 20.5 / 3600, 13 + 11 / 60 + 0.5 / 60))
    with Image.open(file) as image:
        assert gps(image) == gps(file)


def test_south_and_west_are_negative(tmp_path):
    fields = {1: "S", 2: (33.0, 30.0, 0.0), 3: "W", 4: (70.0, 15.0, 0.0)}
    assert gps(photograph(tmp_path / "x.jpg", fields)) == pytest.approx((-33.5, -70.25))


@pytest.mark.parametrize(
    "change",
    [
        {1: None},  # no hemisphere
        {4: None},  # no longitude
        {9: "V"},  # measurement interrupted
        {1: "X"},
        {2: (95.0, 0.0, 0.0)},
        {2: (IFDRational(55, 1), IFDRational(0, 0), IFDRational(0, 1))},  # 0/0: not measured
        {2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)},
    ],
)
def test_what_cameras_write_without_a_fix_is_none(tmp_path, change):
    fields = {key: value for key, value in (LUND | change).items() if value is not None}
    assert gps(photograph(tmp_path / "x.jpg", fields)) is None


def test_degrees_may_be_one_number(tmp_path):
    file = photograph(tmp_path / "x.jpg", {1: "N", 2: 55.6995, 3: "E", 4: 13.1834})
    assert gps(file) == pytest.approx((55.6995, 13.1834))


def test_images_without_or_with_broken_exif_have_none(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "broken.jpg", exif=b"Exif\0\0nonsense")
    assert gps(tmp_path / "plain.jpg") is None and gps(tmp_path / "broken.jpg") is None


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "x.jpg").write_text("no picture")
    with pytest.raises(BadImageError, match="x.jpg: this image cannot be read"):
        gps(tmp_path / "x.jpg")
    with pytest.raises(BadImageError, match="there is no such image file"):
        gps(tmp_path / "y.jpg")


def test_real_photographs_lie_where_their_names_say(shared_places):
    files = sorted((shared_places / "lund/images/test/database").iterdir())
    named = np.array([[float(part) for part in file.name.split("@")[1:3]] for file in files])
    metres, zone = to_metres([gps(file) for file in files])
    assert zone == "33N" and np.abs(metres - named).max() < 0.01
