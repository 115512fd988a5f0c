"""Which photographs an index takes, and the one coordinate system they end up in."""

import numpy as np
import pytest

from sfrs.data.collection import read_photos
from sfrs.data.coordinates import to_metres
from sfrs.data.images import BadImageError
from sfrs.data.photos import Locator, Photo, from_name, project
from sfrs.runtime.errors import UserError

FULL = "@{}@{}@33@U@52.7@13.4@d00008@00@8.1@5.6@0.0@2.4@20190626_074107@day@.jpg"


def test_names_with_coordinates_are_read_at_any_depth(make_image):
    near = make_image("photos/a/b/@500000.50@4000001@x@.jpg")
    full = make_image("photos/" + FULL.format(391065.17, 5840080.39))
    photos = {photo.file: photo for photo in read_photos(near.parents[2])}
    assert photos[near] == Photo(near, (500000.5, 4000001.0))
    assert photos[full] == Photo(full, (391065.17, 5840080.39), "33N", panorama="d00008")


def test_exif_places_what_the_name_does_not(shared_places, tmp_path):
    original = sorted((shared_places / "lund/images/test/database").iterdir())[0]
    (tmp_path / "plain.jpg").write_bytes(original.read_bytes())
    (photo,) = read_photos(tmp_path)
    if photo.degrees is None:
        pytest.skip("these copies of the photographs carry no EXIF position")
    positions, zone = project([photo])
    named = np.array([float(field) for field in original.name.split("@")[1:3]])
    assert zone == "33N" and np.abs(positions[0] - named).max() < 1


def test_a_photo_of_any_suffix_says_where_it_was_taken(make_image, tmp_path):
    assert Locator().locate(from_name(tmp_path / "@5@6@.webp")) == Photo(tmp_path / "@5@6@.webp", (5.0, 6.0))
    plain = make_image("plain.png")
    assert Locator().locate(from_name(plain)) == Photo(plain)
    with pytest.raises(BadImageError, match="nowhere.webp: there is no such image file"):
        Locator().locate(from_name(tmp_path / "nowhere.webp"))


def test_an_unreadable_photo_stops_reading_or_says_why(make_image, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    good = make_image("good.jpg")
    with pytest.raises(BadImageError, match="bad.jpg: this image cannot be read"):
        read_photos(tmp_path)
    bad, other = read_photos(tmp_path, skip_bad_images=True)
    assert bad.file.name == "bad.jpg" and "cannot be read" in bad.unreadable
    assert other == Photo(good)


def test_a_place_folder_gives_the_database_of_a_split(place_folder):
    photos = read_photos(place_folder, "test")
    assert len(photos) == 12 and all("database" in photo.file.parts for photo in photos)
    with pytest.raises(UserError, match="has the splits test"):
        read_photos(place_folder, "val")


def manifest(tmp_path, text: str):
    file = tmp_path / "photos.csv"
    file.write_text(text)
    return file


def test_manifests_give_metres_degrees_zones_and_leave_queries_out(make_image, tmp_path):
    for name in "abcd":
        make_image(f"{name}.jpg")
    file = manifest(
        tmp_path,
        "file, role, easting, northing, zone, latitude, longitude\n"
        "a.jpg, database, 391065, 5840080, 33n,,\n"
        "b.jpg, , , , , 52.7, 13.4\n"
        "c.jpg, query, 1, 2, , ,\n"
        "d.jpg, gallery, , , , ,\n",
    )
    a, b, d = read_photos(file)
    assert a.metres == (391065, 5840080) and a.zone == "33N" and a.file == tmp_path / "a.jpg"
    assert b.degrees == (52.7, 13.4) and d == Photo(tmp_path / "d.jpg")


def test_empty_columns_of_a_manifest_leave_it_to_the_name(make_image, tmp_path):
    named = make_image(FULL.format(391065.17, 5840080.39))
    (photo,) = read_photos(manifest(tmp_path, f"file,easting,northing\n{named.name},,\n"))
    assert photo == Photo(named, (391065.17, 5840080.39), "33N", panorama="d00008")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,easting\n", "no column file"),
        ("file,easting,northing\na.jpg,1,x\n", "line 2: easting is '1' and northing 'x'"),
        ("file,latitude,longitude\na.jpg,1,\n", "expected degrees"),
        ("file,easting,northing\na.jpg,1,2\na.jpg,1,2\n", "line 3: .*a.jpg is on line 2 too"),
        ("file,role,easting,northing\na.jpg,judge,1,2\n", "role is 'judge'"),
        ("file,split,easting,northing\na.jpg,val,1,2\n", "The split column has val"),
        ("file,easting,northing\n,1,2\n", "the file column is empty"),
        ("file,easting,northing,zone\na.jpg,1,2,99X\n", "photos.csv, line 2: '99X' is no UTM zone"),
        ("file\n@1@2@61@U@5@6@7@8@9@1@2@3@4@5@.jpg\n", "photos.csv, line 2: .*'61' is no UTM zone"),
    ],
)
def test_mistakes_in_a_manifest_are_named_with_their_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_photos(manifest(tmp_path, text))


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no .jpg"):
        read_photos(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_photos(tmp_path / "nowhere")


def test_everything_is_projected_to_the_first_zone(tmp_path):
    west = to_metres(np.array([[52.7, 11.9]]), "32N")[0][0]
    photos = [
        Photo(tmp_path / "unknown.jpg"),
        Photo(tmp_path / "a.jpg", (391065.17, 5840080.39), "33N"),
        Photo(tmp_path / "b.jpg", tuple(west), "32N"),
        Photo(tmp_path / "c.jpg", degrees=(52.7, 11.9)),
    ]
    positions, zone = project(photos)
    assert zone == "33N" and np.isnan(positions[0]).all()
    assert positions[1] == pytest.approx([391065.17, 5840080.39])
    assert positions[2] == pytest.approx(positions[3], abs=0.01)
    assert project(photos, "32N")[1] == "32N"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"metres": (6174119.0, 386531.0)}, "b.jpg: 6174119, 386531 lies outside of UTM zone 33N"),
        ({"metres": (6174119.0, 386531.0), "zone": "32N"}, "b.jpg: .* lies outside of UTM zone 32N"),
        ({"degrees": (139.0, 35.0)}, "b.jpg: 139, 35 is no point on earth"),
    ],
)
def test_a_place_that_cannot_be_is_told_with_its_photo(tmp_path, place, message):
    good = Photo(tmp_path / "a.jpg", (391065.17, 5840080.39), "33N")
    with pytest.raises(UserError, match=message):
        project([good, Photo(tmp_path / "b.jpg", **place)], "33N")


def test_the_first_place_on_earth_is_told_with_its_photo_too(tmp_path):
    with pytest.raises(UserError, match="a.jpg: 85, 13: UTM ends at"):
        project([Photo(tmp_path / "a.jpg", degrees=(85.0, 13.0))])


def test_a_name_with_a_zone_that_does_not_exist_is_told(make_image):
    file = make_image("photos/" + FULL.replace("@33@U@", "@61@U@").format(1, 2))
    with pytest.raises(UserError, match="d00008.*: '61' is no UTM zone"):
        read_photos(file.parent)


def test_metres_without_a_zone_stay_alone_or_need_one(tmp_path):
    plain, placed = Photo(tmp_path / "a.jpg", (5.0, 6.0)), Photo(tmp_path / "b.jpg", degrees=(52.7, 13.4))
    positions, zone = project([plain])
    assert zone == "" and positions[0] == pytest.approx([5, 6])
    with pytest.raises(UserError, match="a.jpg has metres without a UTM zone, but .*b.jpg"):
        project([placed, plain])
    positions, zone = project([placed, Photo(plain.file, (391065.0, 5840080.0))], "33N")
    assert zone == "33N" and positions[1] == pytest.approx([391065, 5840080])
