"""``sfrs serve``: what the endpoint, the pictures, the map and the page answer."""

import json
import re

import numpy as np
import pytest
from pictures import picture
from PIL import ExifTags, Image
from served import SPOTS, build_index, encoded, photo, serving

pytest.importorskip("fastapi", reason='needs the extra "serve"')
from sfrs.data.coordinates import to_degrees
from sfrs.retrieval.index import Index
from sfrs.web.overview import overview
from sfrs.web.serve.app import create_app
from sfrs.web.serve.page import page
from sfrs.web.serve.uploads import Limits

LIMITS = Limits(megabytes=1, megapixels=4)
PATHS = ("../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "0/../1", "%00")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return Index.open(build_index(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def client(index):
    with serving(create_app(index, limits=LIMITS)) as client:
        yield client


@pytest.mark.parametrize("scene", [0, 7])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_photo_is_located_where_its_scene_is(client, scene, format):
    answer = client.locate(photo(scene, format), "?top=3", f"image/{format.lower()}")
    found = answer.json
    assert answer.status == 200 and [len(found["matches"]), found["matches"][0]["row"]] == [3, scene]
    assert found["matches"][0]["easting"] == 391000 + 100 * scene
    assert abs(found["location"]["easting"] - (391000 + 100 * scene)) < 25
    assert 0 <= found["location"]["confidence"] <= 1
    assert found["location"]["latitude"] == pytest.approx(52.7, abs=0.1)
    assert {"decode", "explain"} < set(found["milliseconds"])


def test_the_answer_is_that_of_sfrs_locate(client, index, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(photo(3))
    expected = index.locate(file, top=4).as_json()
    answered = client.locate(file.read_bytes(), "?top=4&explain=false").json
    assert [match["row"] for match in answered["matches"]] == [match["row"] for match in expected["matches"]]
    for key in ("easting", "northing", "confidence", "spread"):
        assert answered["location"][key] == pytest.approx(expected["location"][key], rel=1e-5)
    for mine, theirs in zip(answered["matches"], expected["matches"], strict=True):
        assert mine["similarity"] == pytest.approx(theirs["similarity"], abs=1e-5)
        assert "/" not in mine["file"] and theirs["file"].endswith(mine["file"])
        assert "explanation" not in mine


def test_a_form_is_answered_like_the_raw_body(client):
    raw, of_form = client.locate(photo(5)).json, client.locate_form(photo(5)).json
    for found in (raw, of_form):
        del found["milliseconds"]
    assert raw == of_form


def test_every_match_says_which_regions_agree(client):
    found = client.locate(photo(2), "?top=2").json
    assert [region["name"] for region in found["region_boxes"][:3]] == [
        "whole image",
        "top half",
        "bottom half",
    ]
    assert found["region_boxes"][8]["box"] == [0.5, 0.5, 1.0, 1.0]
    for match in found["matches"]:
        similarities = np.array(match["explanation"]["similarities"])
        assert similarities.shape == (9, 9)
        assert similarities[tuple(match["explanation"]["best"])] == similarities.max()
        assert similarities[tuple(match["explanation"]["best_part"])] == similarities[1:, 1:].max()
    assert found["matches"][0]["explanation"]["similarities"][0][0] > 0.8


def test_a_crop_agrees_with_the_part_it_shows(client):
    half = picture(4, 96, 128).crop((0, 0, 128, 48)).resize((128, 96))
    match = client.locate(encoded(half, "PNG"), "?top=1", "image/png").json["matches"][0]
    row = np.array(match["explanation"]["similarities"])[0]
    assert match["row"] == 4 and row[1] > row[2]  # the whole crop is more like the top half than the bottom


def test_matches_can_be_re_ranked_by_regions(client):
    answer = client.locate(photo(6), "?rerank=regions&top=3")
    assert answer.status == 200 and answer.json["matches"][0]["row"] == 6


def test_a_request_may_keep_to_a_circle(client, index):
    latitude, longitude = to_degrees(index.positions[[3]], index.zone)[0]
    answer = client.locate(photo(9), f"?top=9&near={latitude:.7f},{longitude:.7f},150")
    assert answer.status == 200 and {match["row"] for match in answer.json["matches"]} == {2, 3, 4}
    for near, status, said in (
        ("here", 422, "near is 'here'; expected LAT,LON,RADIUS"),
        ("95,13,100", 422, "is no point on earth"),
        ("52,13,-1", 422, "expected more than 0"),
        ("-30,100,500", 404, "near is -30,100,500: no image of this index is in the circle."),
    ):
        answer = client.locate(photo(9), f"?near={near}")
        assert answer.status == status and said in answer.error and "--" not in answer.error


def test_photos_are_turned_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(8, 96, 128).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    assert client.locate(turned).json["matches"][0]["row"] == 8


def test_the_photos_own_gps_is_compared(client):
    def with_gps(east_of_greenwich: float) -> bytes:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 1
        exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 42.0, 0.0), 3: "E", 4: (east_of_greenwich, 0.0, 0.0)}
        return photo(0, exif=exif)

    found = client.locate(with_gps(13.4)).json
    truth, location = found["truth"], found["location"]
    assert [truth["latitude"], truth["longitude"]] == [52.7, 13.4]
    offset = (truth["easting"] - location["easting"], truth["northing"] - location["northing"])
    assert found["error"] == pytest.approx(np.hypot(*offset), abs=0.02) and found["error"] > 100
    far, nowhere = client.locate(with_gps(120.0)).json, client.locate(photo(0)).json
    assert far["truth"]["longitude"] == 120.0 and far["truth"]["easting"] is None
    assert far["error"] == pytest.approx(6.6e6, rel=0.05)
    assert nowhere["truth"] is None and nowhere["error"] is None


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_kind_of_pixels_is_taken(client, mode):
    image = picture(1, 96, 128)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    format = "JPEG" if mode == "CMYK" else "PNG"
    assert client.locate(encoded(image, format)).status == 200


def test_json_never_holds_what_browsers_cannot_read(client):
    json.loads(client.locate(photo(0)).body, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


def test_images_are_small_and_cached(client):
    answer = client.get("/images/3?side=256")
    assert answer.status == 200 and answer.headers["Content-Type"] == "image/jpeg"
    assert answer.body.startswith(b"\xff\xd8\xff")
    again = client.get("/images/3?side=256", If_None_Match=answer.headers["ETag"])
    assert again.status == 304 and again.body == b""
    assert client.get("/images/4?side=256").headers["ETag"] != answer.headers["ETag"]


@pytest.mark.parametrize("name", [str(SPOTS), "-1", "x", "1e9", "9" * 99, *PATHS])
def test_images_have_numbers_and_nothing_else(client, name):
    answer = client.get(f"/images/{name}")
    assert answer.status in (404, 422) and answer.error and b"root:" not in answer.body


def test_an_image_that_was_replaced_or_removed_is_noticed(tmp_path, capsys):
    index = Index.open(build_index(tmp_path))
    with serving(create_app(index)) as client:
        before = client.get("/images/0")
        picture(99, 96, 128).save(index.files[0])
        after = client.get("/images/0", If_None_Match=before.headers["ETag"])
        assert after.status == 200 and after.body != before.body
        index.files[0].unlink()
        assert client.get("/images/0").status == 404
        found = client.locate(photo(0), "?top=2").json["matches"]
        assert found[0]["row"] == 0 and found[0]["explanation"] is None and found[1]["explanation"]
        reranked = client.locate(photo(0), f"?rerank=regions&top={SPOTS}")
        assert reranked.status == 200 and reranked.json["left_out"] == [0]
        assert {match["row"] for match in reranked.json["matches"]} == set(range(1, SPOTS))
        for file in index.files[1:]:
            file.unlink()
        failed = client.locate(photo(0), "?rerank=regions")
        assert failed.status == 500 and "terminal" in failed.error and str(tmp_path) not in failed.error
        assert str(index.files[0].name) in "".join(capsys.readouterr().err.split())


def test_no_path_is_given_away_by_an_image_that_was_damaged(tmp_path):
    index = Index.open(build_index(tmp_path))
    index.files[0].write_text("no picture")
    index.files[1].write_bytes(index.files[1].read_bytes()[:700])
    with serving(create_app(index)) as client:
        for row in (0, 1):
            answer = client.get(f"/images/{row}")
            assert answer.status == 404 and answer.error == f"Image {row} cannot be read any more."


def test_the_map_shows_every_place_once(client):
    shown = client.get("/map").json
    assert shown["images"] == SPOTS and shown["zone"] == "33N"
    assert shown["points"] == [[row, 391000.0 + 100 * row, 5840000.0] for row in range(SPOTS)]


def test_a_large_map_is_thinned_evenly():
    class Large:
        self_test = None
        zone = ""
        positions = np.random.default_rng(0).random((200_000, 2)) * (2000, 1000)

        def __len__(self):
            return len(self.positions)

    Large.positions[7] = np.nan
    points = np.array(overview(Large(), 1000)["points"])
    assert 800 < len(points) <= 1000 and np.isfinite(points).all()
    quadrants = np.histogram2d(points[:, 1], points[:, 2], bins=(4, 2), range=((0, 2000), (0, 1000)))[0]
    assert quadrants.min() > 0.7 * quadrants.mean()


def test_the_page_asks_nobody_else(client):
    answer = client.get("/")
    text = answer.body.decode()
    assert answer.status == 200 and "{{" not in text
    outside = set(re.findall(r"""(?:https?:)?//[a-z][^\s"'<>`)]*""", re.sub(r"(?m)^\s*//.*$", "", text)))
    assert {address for address in outside if "www.w3.org" not in address} <= {"//www.w3.org/2000/svg"}
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page()[1] == policy


def test_the_interface_is_described(client):
    described = client.get("/openapi.json").json
    operation = described["paths"]["/locate"]["post"]
    assert {"413", "415", "422", "503"} < set(operation["responses"])
    assert {"multipart/form-data", "image/jpeg"} < set(operation["requestBody"]["content"])
    assert client.get("/docs").status == 404
