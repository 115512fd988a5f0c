"""An index: what it holds after building, adding, changing and removing, and what it finds."""

import os
import shutil

import numpy as np
import pytest
import torch

from sfrs.data.collection import read_photos
from sfrs.data.images import BadImageError
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.models.whitening import Whitening
from sfrs.retrieval.index import Adding, Builder, Index
from sfrs.retrieval.index.store import LOCK, NETWORK, TABLE, Store
from sfrs.retrieval.search import search
from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError

SIZE = (48, 64)


@pytest.fixture
def model(tiny_network):
    return Model(tiny_network, size=SIZE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "town.index"


def build(path, photos, model=None, **options):
    adding = {name: options.pop(name) for name in ("allow_unplaced", "skip_bad_images") if name in options}
    with Builder(path, model, **options) as builder:
        builder.add(read_photos(photos), Adding(**adding))
        return builder.finish()


def queries(place_folder):
    return sorted((place_folder / "images/test/queries").iterdir())


def test_an_index_finds_what_a_search_over_descriptors_finds(place_folder, path, model):
    change = build(path, place_folder, model)
    assert (change.added, change.unchanged) == (12, 0)
    index = Index.open(path)
    assert len(index) == 12 and index.kind == "exact" and index.zone == "" and index.model.size == SIZE
    files = sorted((place_folder / "images/test/database").iterdir())
    assert list(index.files) == files and index.positions[3] == pytest.approx([500300, 4000000])
    asked = index.model.encode(queries(place_folder))
    expected = search(Model(model.network, size=SIZE).encode(files), asked, 5)
    similarities, rows = index.search(asked, 5)
    np.testing.assert_allclose(similarities, expected[0], atol=1e-6)
    assert (rows == expected[1]).all() and (rows[:, 0] == np.arange(12)).all()


def test_what_is_past_the_end_is_minus_one(place_folder, path, model):
    build(path, place_folder, model)
    index = Index.open(path)
    similarities, rows = index.search(index.model.encode(queries(place_folder)[:2]), 15)
    assert (rows[:, 12:] == -1).all() and np.isneginf(similarities[:, 12:]).all()
    assert all(sorted(row) == list(range(12)) for row in rows[:, :12])


def test_whitening_travels_with_the_index(place_folder, path, tiny_network):
    files = sorted((place_folder / "images/test/database").iterdir())
    whitening = Whitening.fit(Model(tiny_network, size=SIZE).encode(files), 8)
    model = Model(tiny_network, whitening, size=SIZE)
    build(path, place_folder, model)
    index = Index.open(path)
    expected = Model(tiny_network, whitening, size=SIZE).encode(files[:2])
    np.testing.assert_allclose(index.model.encode(files[:2]), expected, atol=1e-6)
    assert index.fingerprint == model.fingerprint() and index.model.whitening.dim == 8
    assert index.fingerprint != Model(tiny_network, size=SIZE).fingerprint()


def test_images_in_memory_are_described_as_files_are(place_folder, path, model):
    from PIL import Image

    build(path, place_folder, model)
    index, file = Index.open(path), queries(place_folder)[0]
    with Image.open(file) as image:
        np.testing.assert_allclose(index.model.encode([image]), index.model.encode([file]), atol=1e-6)
        torch.testing.assert_close(index.model.quarters([image]), index.model.quarters([file]))


def test_regions_are_stored_or_computed_from_the_files(place_folder, path, model, tmp_path):
    build(path, place_folder, model)
    build(tmp_path / "regions.index", place_folder, model, regions=True)
    computed, stored = Index.open(path), Index.open(tmp_path / "regions.index")
    assert stored.has_regions and not computed.has_regions
    rows = [7, 2]
    assert stored.quarters(rows).shape == (2, 4, 4, 6)
    torch.testing.assert_close(stored.quarters(rows), computed.quarters(rows), rtol=1e-3, atol=1e-3)
    evaluated = np.empty((2, 4, 4, 6), np.float16)
    model.encode([stored.files[row] for row in rows], quarters=evaluated)
    for index in (stored, computed):
        torch.testing.assert_close(
            index.quarters(rows), torch.from_numpy(evaluated).float(), rtol=1e-3, atol=1e-3
        )


def test_running_again_adds_what_is_new_and_describes_what_changed(place_folder, path, model):
    folder = place_folder / "images/test/database"
    files = sorted(folder.iterdir())
    kept = files[11].rename(place_folder / "later.jpg")
    build(path, place_folder, model)
    before = Index.open(path).model.encode([files[4]])
    kept.rename(files[11])
    shutil.copy(files[0], files[4])
    os.utime(files[4], ns=(0, 0))
    change = build(path, place_folder)
    assert (change.added, change.described_again, change.unchanged) == (1, 1, 10)
    index = Index.open(path)
    assert sorted(index.files) == files
    rows = index.search(index.model.encode([files[0]]), 2)[1][0]
    assert {index.files[row] for row in rows} == {files[0], files[4]}
    assert not np.allclose(before, index.model.encode([files[4]]), atol=1e-3)
    assert build(path, place_folder).unchanged == 12


def test_a_reader_keeps_seeing_what_it_opened(place_folder, path, model):
    build(path, place_folder, model)
    index = Index.open(path)
    asked = index.model.encode(queries(place_folder))
    before = index.search(asked, 12)
    with Builder(path) as builder:
        builder.remove(str(place_folder / "images/test/database"))
        assert len(Index.open(path)) == 12  # until the builder has finished
        builder.finish()
    assert len(Index.open(path)) == 0
    for old, new in zip(before, index.search(asked, 12), strict=True):
        assert (old == new).all()


def test_removed_images_are_not_found_and_their_rows_are_dropped(place_folder, path, model):
    build(path, place_folder, model, regions=True)
    whole = Index.open(path)
    asked = whole.model.encode(queries(place_folder))
    removed = 0
    for pattern in ("*@00@*", "*@01@*", "*@03@*", "*@04@*"):
        with Builder(path) as builder:
            builder.remove(pattern)
            builder.finish()
        removed += 1
        index = Index.open(path)
        similarities, rows = index.search(asked, 12)
        names = {index.files[row].name.split("@")[3] for row in rows[0] if row >= 0}
        assert len(index) == 12 - removed and len(names) == 12 - removed and pattern[2:4] not in names
        row = next(i for i, file in enumerate(index.files) if "@07@" in file.name)
        assert index.positions[row] == pytest.approx([500700, 4000000])
        torch.testing.assert_close(index.quarters([row]), whole.quarters([7]))
        assert similarities[7].max() == pytest.approx(whole.search(asked[7:8], 1)[0].item(), abs=1e-6)
    (descriptors,) = path.glob("descriptors-*")
    assert descriptors.stat().st_size == 8 * 24 * 4 and descriptors.name == "descriptors-5.float32"


def test_what_is_to_be_removed_is_one_pattern_or_several_that_all_match(place_folder, path, model):
    Index.build(place_folder, model, out=path)
    with pytest.raises(UserError, match="--remove nothing: none of the 12 images"):
        Index.build(out=path, remove=["*@00@*", "nothing"])
    index = Index.build(place_folder, out=path)
    assert len(index) == 12 and index.change.removed == 0  # not by the command that failed
    first = str(index.files[0])
    index = Index.build(out=path, remove=first)  # not its letters, of which "/" holds every file
    assert len(index) == 11 and index.change.removed == 1 and first not in map(str, index.files)
    assert len(Index.build(out=path, remove=["*@01@*", "*@03@*"])) == 9


def test_what_is_not_there_is_not_changed(path, model):
    with pytest.raises(UserError, match="there is no index here"):
        Index.build(None, model, out=path, zone="33N")
    assert not path.exists()
    with pytest.raises(TypeError, match="build.*zonee"):
        Index.build(None, model, out=path, zonee="33N")


def test_an_index_is_built_by_one_process_after_a_training_of_several(place_folder, path, model, monkeypatch):
    monkeypatch.setattr("sfrs.runtime.distributed._joined", Processes(rank=1, count=2))
    assert len(Index.build(place_folder, model, out=path)) == 12


def test_a_first_write_that_fails_says_why_and_leaves_the_index_free(place_folder, path, model, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "create", fail)
        with pytest.raises(OSError, match="no space left"):
            build(path, place_folder, model)
    assert not (path / LOCK).exists()
    assert build(path, place_folder, model).added == 12


def test_images_whose_files_are_gone_can_be_removed(place_folder, path, model):
    build(path, place_folder, model)
    sorted((place_folder / "images/test/database").iterdir())[5].unlink()
    with Builder(path) as builder:
        builder.remove_missing()
        assert builder.finish().removed == 1
    assert len(Index.open(path)) == 11


def test_images_without_position_are_named_or_allowed(make_image, path, model):
    make_image("photos/@1@2@.jpg")
    lost = make_image("photos/lost.jpg", scene=1)
    with pytest.raises(UserError, match=f"1 of 2 images say nowhere .*{lost.name}.*--allow-unplaced"):
        build(path, lost.parent, model)
    assert not path.exists()
    build(path, lost.parent, model, allow_unplaced=True)
    index = Index.open(path)
    assert np.isnan(index.positions[1]).all() and index.positions[0] == pytest.approx([1, 2])


def test_a_bad_image_stops_the_build_or_is_skipped(place_folder, path, model):
    bad = sorted((place_folder / "images/test/database").iterdir())[9]
    bad.write_text("no picture")
    with pytest.raises(BadImageError, match=bad.name):
        build(path, place_folder, model)
    with pytest.raises(UserError, match="not finished"):
        Index.open(path)
    change = build(path, place_folder, skip_bad_images=True)
    assert [file for file, _ in change.skipped] == [bad] and change.unchanged + change.added == 11
    assert len(Index.open(path)) == 11


def test_photos_that_exif_or_a_manifest_names_are_skipped_too(make_image, tmp_path, path, model):
    good = make_image("photos/@1@2@.jpg")
    bad, gone = good.with_name("bad.jpg"), good.with_name("@3@4@.jpg")
    bad.write_text("no picture")
    lines = tmp_path / "photos.csv"
    lines.write_text("".join(f"{line}\n" for line in ("file", good, bad, gone)))
    with pytest.raises(BadImageError, match=r"bad.jpg"):
        build(path, lines, model)
    assert not path.exists()

    with Builder(path, model) as builder:
        builder.add(read_photos(lines, skip_bad_images=True), Adding(skip_bad_images=True))
        change = builder.finish()
    assert change.added == 1 and [file for file, _ in change.skipped] == [bad, gone]
    assert list(Index.open(path).files) == [good]


def test_another_network_size_or_whitening_is_refused_by_name(place_folder, path, model, tiny_network):
    build(path, place_folder, model)
    other = Model(tiny_network, size=(32, 32))
    with pytest.raises(UserError, match="the size of this index: 48x64; of these options: 32x32"):
        build(path, place_folder, other)
    whitened = Model(tiny_network, Whitening(torch.ones(2, 24), torch.zeros(2)), size=SIZE)
    with pytest.raises(UserError, match="the whitening of this index: none"):
        build(path, place_folder, whitened)
    with torch.no_grad():
        tiny_network.vlad.centroids.add_(1e-3)
    with pytest.raises(UserError, match="the weights of this index"):
        build(path, place_folder, Model(tiny_network, size=SIZE))
    assert len(Index.open(path)) == 12


def test_a_zone_can_be_said_later_but_not_changed(place_folder, path, model):
    build(path, place_folder, model)
    with Builder(path, zone="33N") as builder:
        builder.add(())
        builder.finish()
    assert Index.open(path).zone == "33N"
    with pytest.raises(UserError, match="--zone is 32N, but .* is in UTM zone 33N"):
        build(path, place_folder, zone="32N")


def test_a_zone_said_later_has_to_hold_what_is_there(make_image, path, model):
    swapped = make_image("photos/@4000000@500000@.jpg")
    build(path, swapped.parent, model)
    with pytest.raises(UserError, match="@4000000@500000@.jpg: 4000000, 500000 lies outside of UTM zone 33N"):
        build(path, swapped.parent, zone="33N")
    assert Index.open(path).zone == ""


def test_two_builders_never_meet(place_folder, path, model):
    build(path, place_folder, model)
    with Builder(path) as builder:
        with pytest.raises(UserError, match="another sfrs index is writing"), Builder(path):
            pass
        builder.finish()


def test_what_is_no_index_is_refused(tmp_path, place_folder, path, model):
    with pytest.raises(UserError, match="there is no index here"):
        Index.open(path)
    with pytest.raises(UserError, match="this folder is no index"):
        Index.open(place_folder)
    with pytest.raises(UserError, match="holds images and no index"):
        build(place_folder, place_folder, model)
    with pytest.raises(UserError, match="which is a file"):
        build(queries(place_folder)[0], place_folder, model)
    build(path, place_folder, model)
    store = Store.open(path)
    store.write(format=99)
    store.close()
    with pytest.raises(UserError, match="has format 99; this version of sfrs reads format 1"):
        Index.open(path)
    (path / TABLE).write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match="index.sqlite: this file cannot be opened"):
        Index.open(path)


def test_damaged_files_are_named_and_not_written_to(place_folder, path, model, make_image):
    build(path, place_folder, model)
    with (path / "descriptors-0.float32").open("r+b") as file:
        file.truncate(100)
    named = "descriptors-0.float32: this file has 100 bytes; expected 1,152"
    with pytest.raises(UserError, match=named):
        Index.open(path)
    with pytest.raises(UserError, match=named):
        build(path, make_image("more/@1@2@.jpg").parent)
    assert (path / "descriptors-0.float32").stat().st_size == 100


def test_a_model_that_is_not_the_one_it_was_built_with_is_refused(place_folder, path, model):
    build(path, place_folder, model)
    assert Index.open(path).model.fingerprint() == model.fingerprint()
    torch.nn.init.ones_(model.network.vlad.conv.weight)
    save_network(path / NETWORK, model.network)
    with pytest.raises(UserError, match="its model is not the one it was built with; weights differ"):
        Index.open(path)


def test_queries_that_cannot_be_searched_are_refused(place_folder, path, model):
    build(path, place_folder, model)
    index = Index.open(path)
    with pytest.raises(ValueError, match="expected \\[m, 24\\]"):
        index.search(np.zeros((1, 23), np.float32), 1)
    with pytest.raises(ValueError, match="not finite"):
        index.search(np.full((1, 24), np.nan, np.float32), 1)
