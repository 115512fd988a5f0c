"""Photographs located by an index, through the function and through the command."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import ExifTags, Image

from sfrs.cli import app
from sfrs.data.coordinates import to_degrees
from sfrs.data.images import BadImageError, load_image
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.retrieval import index as index_module
from sfrs.retrieval import locate as locating
from sfrs.retrieval.found import as_geojson, summary
from sfrs.retrieval.location import CONSIDERED
from sfrs.retrieval.location import estimate as estimate_location
from sfrs.retrieval.region_rerank import Reranking
from sfrs.retrieval.search import search
from sfrs.runtime.errors import UserError

SIZE = (48, 64)


class InMemory:
    """What `sfrs.retrieval.index.Index` needs to locate, over a list of files."""

    self_test = None

    def __init__(self, network, files, positions, zone="33N", has_regions=True):
        self.network, self.files, self.zone, self.has_regions = network, files, zone, has_regions
        self.path, self.positions = Path("memory.index"), np.asarray(positions, np.float64)
        self.model = Model(network, size=SIZE)
        self.rows = self.model.encode(files)

    def __len__(self):
        return len(self.files)

    def search(self, descriptors, k, near=None):
        similarities, rows = search(self.rows, descriptors, k)
        blank = ((0, 0), (0, k - rows.shape[1]))
        return np.pad(similarities, blank, constant_values=-np.inf), np.pad(rows, blank, constant_values=-1)

    locate = index_module.Index.locate

    def quarters(self, rows):
        return self.model.quarters([self.files[row] for row in rows])


@pytest.fixture
def places(place_folder):
    """12 places 100 m apart; returns (database files, their positions, query files)."""
    database, queries = (
        sorted((place_folder / "images/test" / role).iterdir()) for role in ("database", "queries")
    )
    return database, [[float(x) for x in file.name.split("@")[1:3]] for file in database], queries


@pytest.fixture
def index(tiny_network, places):
    return InMemory(tiny_network, *places[:2])


def test_queries_are_found_where_their_place_is(index, places):
    founds = index.locate(places[2], top=3)
    assert [found.query for found in founds] == [str(file) for file in places[2]]
    for i, found in enumerate(founds):
        best = found.matches[0]
        assert best.file == places[0][i] and best.row == i and len(found.matches) == 3
        assert (best.easting, best.northing) == tuple(places[1][i])
        assert [m.similarity for m in found.matches] == sorted(
            (m.similarity for m in found.matches), reverse=True
        )
        assert found.error == pytest.approx(5.0)  # queries stand 5 m east of their only image
        assert set(found.milliseconds) == {"describe", "search"} and best.regions is None
        expected = to_degrees([places[1][i]], "33N")[0]
        assert (found.location.latitude, found.location.longitude) == pytest.approx(tuple(expected))


def test_an_image_in_memory_is_located_as_its_file(index, places):
    with Image.open(places[2][4]) as image:
        (memory,) = index.locate([image], rerank="regions")
    (file,) = index.locate([places[2][4]], rerank="regions")
    assert memory.query == "photo 1" and memory.truth is None and memory.error is None
    assert [m.row for m in memory.matches] == [m.row for m in file.matches]
    assert memory.location.confidence == pytest.approx(file.location.confidence, rel=1e-3)


def test_re_ranking_orders_by_regions_and_says_which_matched(index, places):
    founds = index.locate(places[2], top=5, rerank=Reranking(2, "best-pair"))
    for i, found in enumerate(founds):
        scores = [match.similarity for match in found.matches]
        assert scores == sorted(scores, reverse=True) and len(scores) == 5  # as many as asked for
        assert found.matches[0].row == i and "rerank" in found.milliseconds
        assert all(0 <= region < 9 for match in found.matches for region in match.regions)


def test_the_json_form_names_everything_and_holds_no_nan(tiny_network, places):
    positions = np.array(places[1])
    positions[2] = np.nan
    index = InMemory(tiny_network, places[0], positions)
    (found,) = index.locate([places[2][2]], top=2, rerank="regions")
    result = json.loads(json.dumps(found.as_json(), allow_nan=False))
    best = result["matches"][0]
    assert best["row"] == 2 and best["easting"] is None and best["latitude"] is None
    assert result["matches"][1]["latitude"] == pytest.approx(36.1, abs=0.2)
    assert result["zone"] == "33N" and set(result["location"]) == {
        "easting", "northing", "latitude", "longitude", "confidence", "spread"
    }  # fmt: skip
    assert "half" in best["regions"][0] or "quarter" in best["regions"][0] or "whole" in best["regions"][0]
    assert result["error"] > 50 and result["truth"]["easting"] == 500205.0


def test_without_any_position_there_is_none_and_no_confidence(tiny_network, places):
    index = InMemory(tiny_network, places[0], np.full((12, 2), np.nan))
    (found,) = index.locate(places[2][:1])
    assert math.isnan(found.location.easting) and found.error is None
    result = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert result["location"]["easting"] is None and result["location"]["confidence"] == 0
    assert summary([found])["within"]["100 m"] == 0 and summary([found])["median_error"] is None


def test_plain_metres_have_no_degrees(tiny_network, places):
    index = InMemory(tiny_network, *places[:2], zone="")
    (found,) = index.locate(places[2][:1])
    assert found.location.latitude is None and found.matches[0].latitude is None
    assert found.error == pytest.approx(5.0)


def test_exif_and_other_zones_say_where_a_photograph_was_taken(index, places, tmp_path):
    latitude, longitude = to_degrees([[500030.0, 4000040.0]], "33N")[0]
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (latitude, 0, 0), 3: "E", 4: (longitude, 0, 0)})
    picture(0).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    (found,) = index.locate([tmp_path / "phone.jpg"])
    assert found.matches[0].row == 0 and found.error == pytest.approx(50.0, abs=0.1)
    (far,) = index.locate([_save(tmp_path / "@500000@4000000@54@S@35@139@@@@@@@@@.jpg")])
    # East of Tokyo, by its zone: out of reach of metres of zone 33, so the distance is that on the earth.
    assert far.truth.coordinates()["easting"] is None and far.truth.longitude == pytest.approx(141)
    assert far.error == pytest.approx(9.99e6, rel=0.05) and summary([found, far])["queries"] == 2


@pytest.mark.parametrize("name", ["@500030@4000040@.webp", "@500030@4000040@"])
def test_a_photograph_of_any_suffix_says_where_it_was_taken(index, tmp_path, name):
    picture(0).save(tmp_path / name, format="WEBP", lossless=True)
    (found,) = index.locate([tmp_path / name])
    assert found.matches[0].row == 0 and found.error == pytest.approx(50.0)


def test_a_photograph_of_any_suffix_is_located_without_a_position(index, tmp_path):
    picture(3).save(tmp_path / "photo.webp", lossless=True)
    (found,) = index.locate([tmp_path / "photo.webp"])
    assert found.matches[0].row == 3 and found.truth is None


@pytest.mark.parametrize("zone", ["61@N", "33@I"])
def test_a_name_with_a_zone_that_does_not_exist_says_nothing(index, tmp_path, zone):
    (found,) = index.locate([_save(tmp_path / f"@500000@4000000@{zone}@36@15@@@@@@@@@.jpg")])
    assert found.matches[0].row == 0 and found.truth is None


def _save(path):
    picture(0).save(path, quality=95)
    return path


def test_geojson_has_points_in_longitude_and_latitude(index, places):
    features = as_geojson(index.locate(places[2][:2], top=3))["features"]
    kinds = [feature["properties"]["kind"] for feature in features]
    assert kinds == ["estimate", "match", "match", "match", "query"] * 2
    longitude, latitude = features[0]["geometry"]["coordinates"]
    assert longitude == pytest.approx(15.0, abs=0.01) and latitude == pytest.approx(36.15, abs=0.05)
    assert features[0]["properties"]["error"] == 5.0 and features[1]["properties"]["rank"] == 1


def test_the_summary_counts_shares_and_the_median(index, places):
    founds = index.locate(places[2])
    result = summary(founds)
    assert result["queries"] == 12 and result["within"] == {"5 m": 1.0, "25 m": 1.0, "100 m": 1.0}
    assert result["median_error"] == 5.0 and 0 < result["mean_confidence"] < 1
    assert summary([]) is None


def test_what_cannot_be_located_is_refused(index, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(BadImageError, match="bad.jpg"):
        index.locate([tmp_path / "bad.jpg"])
    with pytest.raises(UserError, match="rerank is 'magic'; expected regions"):
        index.locate([], rerank="magic")
    index.files = []
    with pytest.raises(UserError, match="holds no image to compare with"):
        index.locate([])


@pytest.fixture
def run(run, monkeypatch, index):
    """Run ``sfrs locate`` on the index in memory; returns (exit code, standard output, standard error)."""
    monkeypatch.setattr(index_module.Index, "open", classmethod(lambda cls, path, **how: index))
    return functools.partial(run, "locate", "--index", "city.index")


def test_the_command_prints_position_matches_and_errors(run, places):
    code, out, err = run(places[2][0].parent, "--top", 2)
    assert code == 0 and "500000.0 E  4000000.0 N  (UTM 33N)" in out and "error 5.0 m" in out
    assert " 1  " in out and places[0][0].name in out and "12 located among 12 images" in out
    assert "100.0 % within 5 m" in out and "median error 5.0 m" in out and "12 of 12" in err


def test_the_command_prints_json_and_writes_geojson(run, places, tmp_path):
    file = tmp_path / "x.geojson"
    code, out, _ = run(places[2][3], "--json", "--geojson", file, "--rerank", "regions", "--top", 1)
    result = json.loads(out)
    assert code == 0 and len(result["queries"]) == 1 and result["summary"]["queries"] == 1
    assert result["queries"][0]["matches"][0]["regions"] and "rerank" in result["queries"][0]["milliseconds"]
    assert json.loads(file.read_text())["type"] == "FeatureCollection"


def test_bad_images_are_named_or_left_out(run, places):
    bad = places[2][2]
    bad.write_text("no picture")
    code, _, err = run(bad.parent)
    assert code == 2 and bad.name in err and "Traceback" not in err
    code, out, err = run(bad.parent, "--skip-bad-images", "--json")
    assert code == 0 and len(json.loads(out)["queries"]) == 11 and "Skipped" in err


def test_re_ranking_without_kept_regions_is_announced_as_slow(run, index, places):
    index.has_regions = False
    code, _, err = run(places[2][0], "--rerank", "regions")
    assert code == 0 and "the first 12 images of every photograph must be described again" in err


def test_regions_that_are_not_kept_are_computed_once_per_image(index, places, monkeypatch):
    expected = [[m.row for m in found.matches] for found in index.locate(places[2], rerank="regions")]
    index.has_regions, computed, compute = False, [], index.quarters
    monkeypatch.setattr(index, "quarters", lambda rows: (computed.extend(rows.tolist()), compute(rows))[1])
    founds = index.locate(places[2], rerank="regions")
    assert [[match.row for match in found.matches] for found in founds] == expected
    assert sorted(computed) == list(range(12))


def without_regions(index, monkeypatch, damage):
    """Let the index compute regions from files, as a real one does, after damage to some of them."""
    computed, compute = [], index.quarters

    def quarters(rows):
        computed.extend(rows.tolist())
        for row in rows:
            load_image(index.files[row])  # raises what a real index raises
        return compute(rows)

    index.has_regions = False
    monkeypatch.setattr(index, "quarters", quarters)
    for row, how in damage.items():
        index.files[row].unlink() if how == "gone" else index.files[row].write_text("no picture")
    return computed


@pytest.mark.parametrize("damage", [{4: "gone"}, {4: "broken", 7: "gone"}])
def test_re_ranking_leaves_out_images_whose_files_are_gone(index, places, monkeypatch, damage):
    computed = without_regions(index, monkeypatch, damage)
    founds = index.locate(places[2][3:6], top=12, rerank="regions")
    for i, found in enumerate(founds, start=3):
        rows = [match.row for match in found.matches]
        assert sorted(rows) == sorted(set(range(12)) - set(damage)) and set(found.left_out) == set(damage)
        assert i in damage or rows[0] == i
        assert set(found.as_json()["left_out"]) == set(damage)
    assert max(computed.count(row) for row in range(12)) <= 2  # nothing is tried again for every query


def test_searching_needs_no_files(index, places):
    index.files[4].unlink()
    (found,) = index.locate([places[2][4]])
    assert found.matches[0].row == 4 and found.left_out == ()


def test_re_ranking_without_any_file_says_what_would_help(index, places, monkeypatch):
    without_regions(index, monkeypatch, dict.fromkeys(range(12), "gone"))
    with pytest.raises(UserError, match="none of the 12 images to re-rank can be read .*--regions"):
        index.locate(places[2][:1], rerank="regions")


def test_the_command_says_what_re_ranking_left_out(run, index, places, monkeypatch):
    without_regions(index, monkeypatch, {4: "gone", 5: "gone"})
    code, out, err = run(places[2][0].parent, "--rerank", "regions")
    assert code == 0 and "12 located among 12 images" in out
    assert (
        f"Left out of re-ranking, because the file cannot be read any more: {places[0][4]} and 1 more" in err
    )


@pytest.mark.parametrize("depth", [1, 5])
def test_the_position_is_weighed_from_20_whatever_is_shown_and_re_ranked(index, places, monkeypatch, depth):
    weighed = []

    def estimate(positions, *arguments, **options):
        weighed.append(len(positions))
        return estimate_location(positions, *arguments, **options)

    monkeypatch.setattr(locating, "estimate", estimate)
    index.files, index.positions = 2 * index.files, np.tile(index.positions, (2, 1))
    index.rows = np.tile(index.rows, (2, 1))
    (found,) = index.locate(places[2][:1], top=1, rerank=Reranking(depth))
    assert len(found.matches) == 1 and weighed == [CONSIDERED]


@pytest.mark.parametrize("name", ["x [copy].jpg", "x [/copy].jpg", "x :smile:.jpg"])
def test_names_of_skipped_images_are_printed_as_they_are(run, places, name):
    bad = places[2][0].parent / name  # a folder "x [" holds the second
    bad.parent.mkdir(exist_ok=True)
    bad.write_text("no picture")
    code, _, err = run(places[2][0].parent, "--skip-bad-images", "--json")
    assert code == 0 and f"Skipped {bad}:" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["{empty}"], "no .jpg, .jpeg"),
        (["{query}", "--rerank", "magic"], "--rerank is 'magic'"),
        (["{query}", "--rerank-depth", "5"], "--rerank-depth needs --rerank regions"),
        (["{query}", "--geojson", "no/folder/x.geojson"], "there is no folder no/folder"),
        (["{query}", "--device", "abacus"], "--device is 'abacus'"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(run, places, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [a.format(query=places[2][0], empty=tmp_path / "empty") for a in arguments]
    code, out, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err + out


def test_geojson_needs_a_known_zone(run, index, places, tmp_path):
    index.zone = ""
    code, _, err = run(places[2][0], "--geojson", tmp_path / "x.geojson")
    assert code == 2 and "metres of an unknown UTM zone" in err and not (tmp_path / "x.geojson").exists()


def test_an_index_that_was_built_locates(capsys, tiny_network, place_folder, places, tmp_path):
    save_network(tmp_path / "tiny.safetensors", tiny_network, {"image_size": list(SIZE)})

    def sfrs(*arguments):
        with pytest.raises(SystemExit) as leaving:
            app([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert not leaving.value.code, captured.err
        return captured.out

    built = tmp_path / "town.index"
    network = ("--weights", tmp_path / "tiny.safetensors", "--zone", "33N")
    sfrs("index", place_folder, "--out", built, *network, "--regions")
    plain = json.loads(sfrs("locate", places[2][0].parent, "--index", built, "--json"))
    regions = json.loads(
        sfrs("locate", places[2][0].parent, "--index", built, "--json", "--rerank", "regions")
    )
    for result in (plain, regions):
        assert result["summary"]["within"]["5 m"] == 1.0 and result["summary"]["queries"] == 12
        assert [query["matches"][0]["file"] for query in result["queries"]] == [str(f) for f in places[0]]
