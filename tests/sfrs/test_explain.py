"""What explains a match: regions of both images compared, clusters found where they are."""

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image

from sfrs.data.images import BadImageError
from sfrs.models.model import Model
from sfrs.retrieval.explain import (
    REGION_BOXES,
    REGION_NAMES,
    cluster_colours,
    draw_region,
    explain_pair,
    open_photograph,
    region_boxes,
    strongest_clusters,
)
from sfrs_ext import REGIONS

SIZE = (48, 64)


def explain(network, query, image, query_size=SIZE):
    model = Model(network, size=SIZE)
    return explain_pair(model, model.at(query_size).features(query), model.features(image))


def test_boxes_cover_the_quarters_of_their_regions():
    assert len(REGION_BOXES) == len(REGIONS) == len(REGION_NAMES)
    assert REGION_BOXES[0] == (0, 0, 1, 1) and REGION_BOXES[2] == (0, 0.5, 1, 1)
    assert REGION_BOXES[6] == (0.5, 0, 1, 0.5) and REGION_BOXES[7] == (0, 0.5, 0.5, 1)


def test_boxes_of_odd_maps_split_where_the_operator_splits():
    left, top, right, bottom = region_boxes(5, 7)[8]
    assert (left, top, right, bottom) == (pytest.approx(3 / 7), pytest.approx(2 / 5), 1, 1)


def test_whole_similarity_is_that_of_the_descriptors(tiny_network, make_image):
    files = [make_image("a.png", 1), make_image("b.png", 2)]
    a, b = Model(tiny_network, size=SIZE).encode(files)
    pair = explain(tiny_network, *files)
    assert pair.similarities.shape == (9, 9) and pair.similarities.dtype == np.float32
    assert pair.whole == pytest.approx(float(a @ b), abs=1e-5)


def test_what_the_clusters_add_sums_to_the_whole_similarity(tiny_network):
    pair = explain(tiny_network, picture(1), picture(2))
    assert pair.clusters.shape == (4,) and pair.clusters.sum() == pytest.approx(pair.whole, abs=1e-5)


def test_an_image_matches_itself_region_by_region(tiny_network, make_image):
    file = make_image("a.png", 1)
    pair = explain(tiny_network, file, file)
    assert np.diag(pair.similarities) == pytest.approx(np.ones(9), abs=1e-5)


def test_of_all_quarters_the_shared_ones_are_most_alike(tiny_network):
    query, image = picture(1, noise=0.02), picture(2, noise=0.02)
    image.paste(query.crop((32, 0, 64, 24)), (0, 24))  # top right of the query, bottom left of the image
    quarters = explain(tiny_network, query, image).similarities[5:, 5:]
    assert np.unravel_index(quarters.argmax(), (4, 4)) == (1, 2)


def test_best_is_the_largest_of_all_pairs(tiny_network):
    pair = explain(tiny_network, picture(1), picture(2))
    assert pair.similarities[pair.best] == pair.similarities.max()
    i, j = pair.best_part
    assert min(i, j) > 0 and pair.similarities[i, j] == pair.similarities[1:, 1:].max()


def test_files_and_images_in_memory_explain_alike(tiny_network, make_image):
    files = [make_image("a.png", 1), make_image("b.png", 2)]
    of_files = explain(tiny_network, *files)
    of_images = explain(tiny_network, *(Image.open(file) for file in files))
    assert np.array_equal(of_files.similarities, of_images.similarities)


def test_a_query_may_have_another_size(tiny_network):
    pair = explain(tiny_network, picture(1), picture(1), query_size=(40, 72))
    assert pair.query_boxes == region_boxes(5, 9) and pair.image_boxes == region_boxes(6, 8)


def test_strongest_clusters_are_those_of_the_soft_assignment(tiny_network):
    image = picture(3)
    model = Model(tiny_network, size=SIZE)
    clusters, weights = strongest_clusters(model, model.features(image))
    assert clusters.shape == weights.shape == (6, 8)
    assert (weights >= 1 / 4).all() and (weights <= 1).all()
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        features = tiny_network.features(tiny_network.trunk((pixels - 0.5) / 0.25))
        soft = tiny_network.vlad.conv(torch.nn.functional.normalize(features, dim=1)).softmax(1)[0]
    assert np.array_equal(clusters, soft.argmax(0).numpy())
    assert np.allclose(weights, soft.amax(0).numpy(), atol=1e-6)


def test_every_cluster_has_a_colour_of_its_own():
    colours = cluster_colours(64)
    apart = np.linalg.norm(colours[:, None].astype(float) - colours, axis=-1) + 1000 * np.eye(64)
    assert apart.min() > 30
    assert np.array_equal(cluster_colours(8), colours[:8])


def test_a_region_is_framed_and_the_rest_dimmed():
    image = picture(4, 96, 128)
    region = np.asarray(draw_region(image, 5)).astype(int)
    pixels = np.asarray(image).astype(int)
    assert np.array_equal(region[10:40, 10:50], pixels[10:40, 10:50])  # inside the frame
    assert np.abs(region[60:, 70:] - pixels[60:, 70:] / 2).max() <= 1  # outside


def test_an_unreadable_photograph_is_named(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    with pytest.raises(BadImageError, match=r"bad\.jpg: this image cannot be read"):
        open_photograph(bad)
