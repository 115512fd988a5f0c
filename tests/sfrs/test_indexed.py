"""``sfrs evaluate --index``: what an index finds is scored as what is found in a database."""

import csv
import json
import shutil

import pytest
from published_sets import write_gsv_city

from sfrs.data.coordinates import to_degrees
from sfrs.models.network import save_network


@pytest.fixture
def weights(tmp_path, tiny_network):
    save_network(tmp_path / "tiny.safetensors", tiny_network, {"image_size": [48, 64]})
    return tmp_path / "tiny.safetensors"


@pytest.fixture(params=["folder", "milvus"])
def index(request, run, place_folder, weights, tmp_path):
    """An index of the database of the place folder, with regions, in zone 33N."""
    if request.param == "milvus":
        pytest.importorskip("milvus_lite", reason="the extra [milvus] is missing")
    out = f"milvus:{tmp_path}/town.db" if request.param == "milvus" else tmp_path / "town.index"
    code, _, err = run(
        "index", place_folder, "--out", out, "--weights", weights, "--zone", "33N", "--regions"
    )
    assert code == 0, err
    return out


@pytest.fixture
def evaluated(run):
    """Run ``sfrs evaluate --json``; returns what it prints."""

    def call(*arguments):
        code, text, err = run("evaluate", *arguments, "--json")
        assert code == 0, err
        return json.loads(text)

    return call


@pytest.fixture
def queries(place_folder):
    return place_folder / "images/test/queries"


@pytest.mark.parametrize("rerank", [("none",), ("regions", "--rerank-depth", "3")])
def test_an_index_scores_as_the_database_it_was_made_of(
    evaluated, index, place_folder, queries, weights, rerank
):
    first, second = sorted(queries.iterdir())[:2]  # their places are swapped: neither is found first
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    options = ["--data", place_folder, "--recall-at", "1,2,3", "--rerank", *rerank]
    expected, found = evaluated(*options, "--weights", weights), evaluated(*options, "--index", index)
    assert expected["recalls"]["1"] == 10 / 12
    for name in ("name", "database", "queries", "queries_without_positive", "recalls", "recalls_of_all"):
        assert found[name] == expected[name], name
    if "rerank" in expected:
        assert found["rerank"]["recalls_before"] == expected["rerank"]["recalls_before"]


def test_photographs_in_degrees_are_queries_in_the_metres_of_the_index(evaluated, index, queries, tmp_path):
    expected = evaluated("--index", index, "--queries", queries)
    assert (expected["database"], expected["queries"], expected["queries_without_positive"]) == (12, 12, 0)
    renamed = tmp_path / "walk"
    renamed.mkdir()
    with (tmp_path / "walk.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("file", "latitude", "longitude"))
        for i, query in enumerate(sorted(queries.iterdir())):
            shutil.copy(query, renamed / f"{i:02d}.jpg")
            metres = [float(number) for number in query.name.split("@")[1:3]]
            lines.writerow((f"{i:02d}.jpg", *to_degrees([metres], "33N")[0]))
    found = evaluated("--index", index, "--queries", renamed, "--positions", tmp_path / "walk.csv")
    assert found["recalls"] == expected["recalls"]


def test_queries_elsewhere_are_not_counted_and_unreadable_ones_left_out(
    run, evaluated, index, queries, make_image
):
    first = sorted(queries.iterdir())[0]
    first.rename(queries / "@700000.00@4000000.00@00@.jpg")
    sorted(queries.iterdir())[3].write_text("no picture")
    code, _, err = run("evaluate", "--index", index, "--queries", queries)
    assert code == 2 and "this image cannot be read" in err and "--skip-bad-images" in err
    found = evaluated("--index", index, "--queries", queries, "--skip-bad-images")
    assert (found["database"], found["queries"], found["queries_without_positive"]) == (12, 11, 1)
    assert len(found["skipped"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--weights", "x.safetensors"],
            "has its own network, whitening and image size; leave out --weights",
        ),
        (["--no-whitening"], "has its own network"),
        (["--hold-out", "time"], "--index is the database; which queries?"),
        (["--database", "walk"], "--index is the database; which queries?"),
        (["--queries", "walk"], "--index is the database; which queries?"),
    ],
)
def test_what_an_index_says_itself_is_refused(run, place_folder, tmp_path, arguments, message):
    code, _, err = run("evaluate", "--index", tmp_path / "x.index", "--data", place_folder, *arguments)
    assert code == 2 and message in err


def test_metres_of_an_unknown_zone_are_not_compared_with_those_of_a_known_one(
    run, place_folder, weights, tmp_path
):
    out = tmp_path / "plain.index"
    assert run("index", place_folder, "--out", out, "--weights", weights)[0] == 0
    code, text, err = run("evaluate", "--index", out, "--data", place_folder, "--zone", "33N")
    assert code == 2 and "metres of an unknown UTM zone, but those of the queries are of 33N." in err
    code, text, err = run("evaluate", "--index", out, "--data", place_folder)
    assert code == 0 and "12 database images" in text, err


def test_its_results_are_written_and_a_report_of_them_names_the_index(run, index, queries, tmp_path):
    out = tmp_path / "evaluated"
    options = ["--index", index, "--queries", queries, "--out", out, "--save-contact-sheet"]
    assert run("evaluate", *options)[0] == 0
    assert {file.name for file in out.iterdir()} == {
        "results.json",
        "predictions.csv",
        "recall.png",
        "contact_sheet.png",
    }
    code, _, err = run("report", out, "--out", tmp_path / "page")
    assert code == 2 and f"the database of these queries is an index; sfrs report {index} shows it." in err


def test_cities_that_were_moved_apart_are_not_queries(run, place_folder, weights, tmp_path):
    out, cities = tmp_path / "plain.index", tmp_path / "gsv"
    write_gsv_city(cities, "Lund", 55.7, 13.19, [1, 2])
    assert run("index", place_folder, "--out", out, "--weights", weights)[0] == 0
    code, _, err = run("evaluate", "--index", out, "--data", cities)
    assert code == 2 and "the cities of GSV-Cities are moved apart" in err
