"""The three small sets of real photographs, read where they lie."""

import pytest
import torch

from sfrs.data.coordinates import within
from sfrs.data.images import check_images
from sfrs.data.places import load_places
from sfrs.models.backbones import build_backbone
from sfrs.models.fitting import init_vlad_from_images
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.retrieval.evaluation import evaluate


@pytest.mark.parametrize(
    ("name", "queries", "database"), [("lund", 10, 19), ("corridor", 111, 111), ("tower", 368, 1039)]
)
def test_the_sets_are_read_and_every_query_has_a_positive(shared_places, name, queries, database):
    places = load_places(shared_places / name)
    assert (len(places.queries), len(places.database)) == (queries, database)
    assert within(places.queries.positions, places.database.positions, 25).counts().min() >= 1


def test_the_photographs_of_lund_decode(shared_places):
    places = load_places(shared_places / "lund")
    assert check_images(places.database.files + places.queries.files) == []


def test_clustered_mean_colours_beat_chance_in_the_corridor(shared_places):
    places = load_places(shared_places / "corridor")
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("tiny"), 8)
    init_vlad_from_images(Model(network, size=None), places.database.files)
    # Five of 111 database images are right: chance is 4.5 %.
    assert evaluate(Model(network, size=None), places, batch_size=32).recalls[1] > 0.09
