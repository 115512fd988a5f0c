import numpy as np
import pytest

from sfrs.data.places import ImageSet, Places, load_places
from sfrs.models.model import Model
from sfrs.models.whitening import Whitening
from sfrs.retrieval.evaluation import Scoring, evaluate, score, without_bad_images
from sfrs.runtime.errors import UserError


def line(eastings: list[float], ids: list[int] | None = None) -> ImageSet:
    positions = np.array([[east, 0.0] for east in eastings])
    return ImageSet(
        tuple(f"{east}.jpg" for east in eastings),
        positions,
        np.array(ids or range(len(eastings)), dtype=np.int64),
    )


def test_pictures_of_one_scene_find_each_other(tiny_network, place_folder):
    result = evaluate(Model(tiny_network, size=None), load_places(place_folder))
    assert result.recalls == {1: 1.0, 5: 1.0, 10: 1.0, 20: 1.0}
    assert result.predictions[:, 0].tolist() == list(range(12))
    assert result.num_positives.tolist() == [1] * 12


def test_whitened_evaluation_finds_them_too(tiny_network, place_folder):
    from sfrs.models.model import Model

    places = load_places(place_folder)
    whitening = Whitening.fit(Model(tiny_network, size=None).encode(places.database.files), 8)
    assert evaluate(Model(tiny_network, whitening, size=None), places).recalls[1] >= 0.9


def test_images_of_differing_sizes_are_evaluated(tiny_network, place_folder, make_image):
    folder = place_folder / "images/test/database"
    make_image(str(folder / "@600000@4000000@.png"), scene=99, height=80, width=40)
    make_image(str(place_folder / "images/test/queries/@600001@4000000@.png"), scene=99, height=72, width=36)
    result = evaluate(Model(tiny_network, size=None), load_places(place_folder), batch_size=4)
    assert len(result.predictions) == 13 and result.recalls[5] == 1.0


def test_queries_can_have_a_size_of_their_own(tiny_network, place_folder):
    places = load_places(place_folder)
    same = evaluate(Model(tiny_network, size=(48, 64)), places, query_size=(48, 64))
    other = evaluate(Model(tiny_network, size=(48, 64)), places, query_size=24)
    assert (
        same.predictions.tolist() == evaluate(Model(tiny_network, size=(48, 64)), places).predictions.tolist()
    )
    assert same.predictions.tolist() != other.predictions.tolist()


def test_queries_without_a_positive_are_not_counted():
    places = Places("line", "test", line([0, 100, 200]), line([1, 500, 199]))
    result = score(places, np.array([[0, 1], [1, 0], [0, 1]]), Scoring((1, 2)))
    assert result.recalls == {1: 0.5, 2: 0.5}
    assert result.answerable.tolist() == [True, False, True]
    assert result.hits(1).tolist() == [True, False, False]


def test_the_radius_is_the_25_m_rule():
    places = Places("line", "test", line([0, 100]), line([24.9, 74.9]))
    predictions = np.array([[0], [1]])
    assert score(places, predictions, Scoring((1,))).recalls[1] == 1.0
    assert score(places, predictions, Scoring((1,))).num_positives.tolist() == [1, 0]
    assert score(places, predictions, Scoring((1,), 30)).num_positives.tolist() == [1, 1]


def test_nms_looks_past_the_images_of_one_panorama():
    places = Places("line", "test", line([100, 100, 100, 0], [7, 7, 7, 8]), line([1]))
    predictions = np.array([[0, 1, 2, 3]])
    assert score(places, predictions, Scoring((1, 2))).recalls == {1: 0.0, 2: 0.0}
    assert score(places, predictions, Scoring((1, 2), nms=True)).recalls == {1: 0.0, 2: 1.0}


def test_the_curve_holds_every_n_and_meets_the_recalls():
    places = Places("line", "test", line([0, 100, 200]), line([1, 101, 199]))
    result = score(places, np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]]), Scoring((1, 2, 5)))
    assert result.curve() == {n: pytest.approx(v) for n, v in {1: 1 / 3, 2: 2 / 3, 3: 1, 4: 1, 5: 1}.items()}
    assert all(result.curve()[n] == pytest.approx(recall) for n, recall in result.recalls.items())
    assert result.predictions[0].tolist() == [0, 1, 2, -1, -1]


def test_no_answerable_query_is_an_error(tiny_network):
    with pytest.raises(UserError, match="none of the 1 queries has a database image within 25 m"):
        evaluate(Model(tiny_network, size=None), Places("line", "test", line([0]), line([900])))


def test_bad_images_are_left_out_and_listed(place_folder):
    places = load_places(place_folder)
    places.database.files[3].write_text("no picture")
    places.queries.files[0].write_bytes(b"")
    kept, bad = without_bad_images(places)
    assert [file for file, _ in bad] == [places.database.files[3], places.queries.files[0]]
    assert kept.database.files == places.database.files[:3] + places.database.files[4:]
    assert kept.database.positions[3].tolist() == places.database.positions[4].tolist()
    assert len(kept.queries) == 11 and kept.queries.place_ids[0] == places.queries.place_ids[1]


def test_a_set_of_bad_images_only_is_an_error(place_folder):
    places = load_places(place_folder)
    for file in places.queries.files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 12 images of queries can be read"):
        without_bad_images(places)
