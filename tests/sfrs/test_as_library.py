"""The index as a library: built with one call, asked with another, shown in a notebook."""

import re

import pytest
from pictures import picture
from PIL import Image

import sfrs
from sfrs.models.model import Model
from sfrs.retrieval.index import Adding
from sfrs.runtime.errors import UserError


@pytest.fixture
def photos(place_folder):
    """12 photographs in one folder, without subfolders of a place folder."""
    return (place_folder / "images/test/database").rename(place_folder / "photos")


@pytest.fixture
def queries(place_folder):
    return sorted((place_folder / "images/test/queries").iterdir())


@pytest.fixture
def model(tiny_network):
    return Model(tiny_network, size=(48, 64))


def test_an_index_is_built_and_extended_by_the_same_call(photos, queries, model, capsys):
    later = sorted(photos.iterdir())[11].rename(photos.parent / "later.jpg")
    index = sfrs.Index.build(photos, model)
    assert index.path == photos.with_name("photos.index") and len(index) == index.change.added == 11
    later.rename(photos / "@501100.00@4000000.00@11@.jpg")
    index = sfrs.Index.build(photos, zone="33N")
    assert (index.change.added, index.change.unchanged, index.zone) == (1, 11, "33N")
    assert index.model.fingerprint() == model.fingerprint() and not index.has_regions
    assert index.locate(queries[11], top=1).matches[0].row == 11
    assert capsys.readouterr() == ("", "")


def test_a_place_folder_and_a_manifest_can_be_built_elsewhere(place_folder, tmp_path, model):
    lines = tmp_path / "town.csv"
    files = sorted((place_folder / "images/test/database").iterdir())[:3]
    lines.write_text("\n".join(["file", *map(str, files)]))
    assert sfrs.Index.build(lines, model).path == tmp_path / "town.index"
    index = sfrs.Index.build(place_folder, model, out=tmp_path / "x", kind="float16", regions=True)
    assert len(index) == 12 and index.path == tmp_path / "x" and index.has_regions
    with pytest.raises(UserError, match="has the splits test"):
        sfrs.Index.build(place_folder, model, adding=Adding(split="train"))


def test_without_clusters_they_are_made_from_the_photographs(photos, model):
    model.network.meta["untrained_vlad"] = True
    index = sfrs.Index.build(photos, model, adding=Adding(clusters={"images": 10, "per_image": 20}))
    assert model.has_clusters and index.model.has_clusters and index.has_regions
    model.network.meta["untrained_vlad"] = True
    again = sfrs.Index.build(photos, model)  # goes on with the clusters that the index has
    assert again.change.unchanged == 12 and again.fingerprint == index.fingerprint


def test_one_photograph_gives_one_answer_and_a_list_a_list(photos, queries, model):
    index = sfrs.Index.build(photos, model)
    found, (again,) = index.locate(str(queries[3])), index.locate(queries[3:4], rerank="regions")
    assert found.matches[0].row == again.matches[0].row == 3 and len(found.matches) == 5
    assert again.matches[0].regions and found.matches[0].regions is None
    with Image.open(queries[3]) as image:
        assert index.locate(image).matches[0].row == index.locate(picture(3), top=1).matches[0].row == 3


def test_a_notebook_shows_photograph_matches_and_regions(photos, queries, model):
    query = queries[0].rename(queries[0].with_name("a <b>&.jpg"))
    index = sfrs.Index.build(photos, model, zone="33N")
    plain, regions = index.locate(query, top=9)._repr_html_(), index.locate(query, rerank="regions")
    index.files[regions.matches[1].row].unlink()
    page = regions._repr_html_()
    assert plain.count("<img") == plain.count("<figure") == 5  # the photograph, and four matches
    assert page.count("<img") == 1 + 4 * 2 - 1 and "cannot be read any more" in page
    assert (
        "a &lt;b&gt;&amp;.jpg" in page
        and "<b>" not in page
        and " ~ ".join(regions.matches[0].region_names) in page
    )
    assert not re.search(r"https?:|<script|/images/", page)  # nothing from elsewhere, no folder
    assert set(re.findall(r'src="([^,]*),', page)) == {"data:image/jpeg;base64"} and len(page) < 100_000
