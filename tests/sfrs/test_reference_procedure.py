"""A training step gives the losses and gradients of the reference procedure; mining gives its tuples.

The reference procedure is `benchmarks.training.reference`: every image of a tuple through the whole network,
nine descriptors per image, one tuple after the other. Its region descriptors are checked here against NetVLAD
of nine slices of the map.
"""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from tiny_training import network_of_seed
from torch import nn

from benchmarks.training import list_mining, reference
from benchmarks.training.mining_problem import MiningProblem
from sfrs.models.backbones import VGG16_HEAD, Backbone, _layers
from sfrs.models.network import DescriptorNetwork
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Miner, Tuples
from sfrs.training.step import StudentTeacher, TrainingImages, tuple_losses

pytestmark = pytest.mark.slow

QUERIES, DATABASE, NEGATIVES = 4, 12, 3
SHARPNESS = 0.1
POSITIVES = [3, 2, 1, 3]
"""Difficult positives of the tuples: ragged."""
FLOAT32, FLOAT64 = 1e-5, 1e-9
"""Largest error of a loss, or of a gradient relative to the largest of its tensor."""
CONV5_FLOAT32 = 1e-4
"""With 512 channels and 64 clusters the reference procedure itself is 1e-5 from float64 behind the
convolutions, whose sums change with the size of a batch by as much; see the test of 512 channels."""


def tiny_network(seed):
    return network_of_seed(seed, clusters=4)


def vgg_head_network(seed):
    """conv5 of VGG16 and 64 clusters behind a trunk that does nothing: images are conv4 outputs."""
    torch.manual_seed(seed)
    head = _layers(VGG16_HEAD, 512, last_relu=False)
    for layer in head:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    options = dict(name="vgg16", channels=512, stride=1, mean=(0, 0, 0), std=(1, 1, 1))
    return DescriptorNetwork(Backbone(nn.Identity(), head, **options), 64)


def with_clusters(network, images):
    """NetVLAD as k-means would start it, less sharp. As it is built, all images look alike to it, and
    gradients are small differences of large numbers, which float32 cannot tell."""
    with torch.no_grad():
        local = network.features(network.trunk(images)).transpose(0, 1).flatten(1).T
    local, clusters = F.normalize(local, dim=1), network.vlad.num_clusters
    centres = local[: len(local) // clusters * clusters].unflatten(0, (clusters, -1)).mean(1)
    network.vlad.init_from_clusters(centres, local)
    network.vlad.conv.weight.data.mul_(SHARPNESS)
    return network


NETWORKS = {  # network, what is drawn of an image, pixels of each; the maps are even and odd
    "tiny 6x8": (tiny_network, (3, 6, 8), 8),
    "tiny 7x9": (tiny_network, (3, 7, 9), 8),
    "conv5 5x7": (vgg_head_network, (512, 5, 7), 1),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(name, tuples):
    """Student, teacher, images of all numbers, and tuples with ragged difficult positives."""
    build, shape, scale = NETWORKS[name]
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(QUERIES + DATABASE, *shape, generator=generator)
    rows = torch.stack([torch.randperm(DATABASE, generator=generator) for _ in range(tuples)])
    difficult = torch.full((tuples, max(POSITIVES)), -1)
    for query, (row, count) in enumerate(zip(rows, POSITIVES, strict=False)):
        difficult[query, :count] = row[5 : 5 + count]
        shown = QUERIES + torch.cat((row[:1], row[5 : 5 + count]))  # show a little of the query's place
        images[shown] = 0.8 * images[shown] + 0.6 * images[query]
    # A trunk's outputs are positive; a block of pixels is one position of the tiny trunk.
    images = images.relu() if scale == 1 else images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    networks = [with_clusters(build(seed), images) for seed in (1, 2)]
    return *networks, images, Tuples(torch.arange(tuples), rows[:, 0], rows[:, 1 : 1 + NEGATIVES], difficult)


def gradients(network):
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def ours(student, teacher, images, tuples, config, generation):
    student = copy.deepcopy(student)
    names = tuple(map(str, range(len(images))))

    def trunk(numbers, *, step=0):
        return student.trunk(images[numbers])

    source = TrainingImages(QUERIES, DATABASE, trunk, trunk, names)
    state = StudentTeacher(generation, student, teacher if generation > 1 else None, None, None)
    losses = tuple_losses(state, tuples, source, config)
    (losses.hard + config.soft_weight * losses.soft).backward()
    return {"hard": losses.hard.detach(), "soft": losses.soft.detach(), **gradients(student)}


def theirs(student, teacher, images, tuples, config, generation):
    student = copy.deepcopy(student)
    hard, soft = [], []
    for query, positive, negatives, difficult in zip(*vars(tuples).values(), strict=True):
        gathered = reference.gather(
            lambda number: images[number],
            int(query),
            QUERIES + int(positive),
            (QUERIES + negatives).tolist(),
            (QUERIES + difficult[difficult >= 0]).tolist(),
        )
        losses = reference.tuple_losses(student, teacher, gathered, config, generation)
        hard.append(losses[0])
        soft.append(losses[1])
    hard, soft = torch.stack(hard).mean(), torch.stack(soft).mean()
    if generation == 1:
        soft = 0 * soft
    (hard + config.soft_weight * soft).backward()
    return {"hard": hard.detach(), "soft": soft.detach(), **gradients(student)}


def errors(found, expected):
    """Largest difference of each tensor, relative to the largest number in it."""
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)).item()
        for name, value in expected.items()
    }


def check(name, config, generation, tuples):
    student, teacher, images, drawn = problem(name, tuples)
    single = CONV5_FLOAT32 if name.startswith("conv5") else FLOAT32
    both = [run(student, teacher, images, drawn, config, generation) for run in (ours, theirs)]
    worst = errors(*both)
    assert max(worst.values()) <= single, worst
    student, teacher, images = student.double(), teacher.double(), images.double()
    worst = errors(*(run(student, teacher, images, drawn, config, generation) for run in (ours, theirs)))
    assert max(worst.values()) <= FLOAT64, worst
    assert both[0]["hard"] > 0
    assert (both[0]["soft"] > 0) == (generation > 1)


@pytest.mark.parametrize("tuples", [1, 4])
@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("name", ["tiny 6x8", "tiny 7x9"])
def test_losses_and_all_gradients_are_those_of_the_reference_procedure(name, generation, tuples):
    check(name, TrainConfig(), generation, tuples)


def test_losses_and_all_gradients_of_conv5_are_those_of_the_reference_procedure():
    check("conv5 5x7", TrainConfig(), 2, 4)


def test_with_512_channels_and_64_clusters_float32_is_as_exact_as_the_reference_procedure():
    """Behind the convolutions: a ReLU that float32 switches makes gradients below it incomparable."""
    student, teacher, images, drawn = problem("conv5 5x7", 1)
    with torch.no_grad():
        features = student.features(images)
    for network in (student, teacher):
        network.backbone.head = nn.Identity()
    found, expected = (run(student, teacher, features, drawn, TrainConfig(), 2) for run in (ours, theirs))
    exact = theirs(student.double(), teacher.double(), features.double(), drawn, TrainConfig(), 2)
    errors_of = [errors({k: v.double() for k, v in each.items()}, exact) for each in (found, expected)]
    for name in exact:
        assert errors_of[0][name] <= 2 * errors_of[1][name] + FLOAT32, (name, errors_of)


@pytest.mark.parametrize("tuples", [1, 4])
def test_labels_of_whole_images_give_the_gradients_of_the_reference_procedure(tuples):
    check("tiny 7x9", TrainConfig(soft_level="image"), 2, tuples)
    check("tiny 7x9", TrainConfig(soft_level="image", region_negatives=False), 3, tuples)


@pytest.mark.parametrize(
    "changes",
    [
        {"hard_loss": "triplet"},
        {"hard_loss": "triplet", "triplet_distance": "plain"},
        {"hard_loss": "sare-joint"},
    ],
)
def test_other_hard_losses_give_the_gradients_of_the_reference_procedure(changes):
    check("tiny 7x9", TrainConfig(margin=2.0, **changes), 2, 4)


def test_later_generations_use_their_own_temperature():
    student, teacher, images, drawn = problem("tiny 7x9", 4)
    student, teacher, images = student.double(), teacher.double(), images.double()
    soft = []
    for generation in (2, 3, 4):
        found, expected = (
            run(student, teacher, images, drawn, TrainConfig(), generation) for run in (ours, theirs)
        )
        assert max(errors(found, expected).values()) <= FLOAT64
        soft.append(found["soft"].item())
    assert len(set(soft)) == 3


def test_a_tuple_of_the_paper_takes_34_passes_in_the_reference_procedure():
    image = torch.zeros(3, 4, 4)
    gathered = reference.gather(lambda number: image, 0, 1, list(range(2, 12)), list(range(12, 22)))
    assert gathered.passes == 34


@pytest.mark.parametrize("shape", [(6, 8), (7, 9)])
def test_region_descriptors_of_the_reference_are_netvlad_of_nine_slices_of_the_map(shape):
    network = tiny_network(0).double()
    images = torch.randn(2, 3, 8 * shape[0], 8 * shape[1], dtype=torch.float64)
    features = F.normalize(network.features(network.trunk(images)), dim=1)
    row, column = shape[0] // 2, shape[1] // 2
    top, bottom, left, right, all_ = (
        slice(None, row), slice(row, None), slice(None, column), slice(column, None), slice(None),
    )  # fmt: skip
    windows = [
        (all_, all_), (top, all_), (bottom, all_), (all_, left), (all_, right),
        (top, left), (top, right), (bottom, left), (bottom, right),
    ]  # fmt: skip
    descriptors = []
    for rows, columns in windows:
        local = features[:, :, rows, columns].flatten(2)  # [B, D, P]
        assignment = torch.einsum("kd,bdp->bkp", network.vlad.weight, local).softmax(1)
        vlad = torch.stack(
            [
                ((local - centre[:, None]) * assignment[:, k, None]).sum(2)
                for k, centre in enumerate(network.vlad.centroids)
            ],
            dim=1,
        )  # [B, K, D]
        descriptors.append(F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1))
    found = reference.region_descriptors(network, images)
    torch.testing.assert_close(found, torch.stack(descriptors, dim=1), rtol=1e-10, atol=1e-12)


def test_mined_tuples_are_those_of_lists_of_the_whole_gallery_given_the_same_pool():
    problem = MiningProblem.draw(60, 720, 32, seed=3)
    config = TrainConfig(negative_pool=100)
    miner = Miner(problem.neighbourhood, config, seed=5)
    queries, database = problem.queries.double(), problem.database.double()
    previous = None
    for _ in range(2):  # the second time with the hardest of the first
        before = miner.generator.get_state()
        found = miner.mine(miner.queries, queries, database, difficult="promoted")
        pools = drawn_pools(miner, before, queries, database)
        if previous is not None:
            pools = [pool + hardest for pool, hardest in zip(pools, previous, strict=True)]
        lists = list_mining.mine(
            miner.queries.tolist(),
            queries.numpy(),
            database.numpy(),
            [problem.neighbourhood.positives[i].tolist() for i in miner.queries.tolist()],
            pools,
            rerank=(config.rerank_neighbours, config.rerank_lambda),
        )
        assert [t.positive for t in lists] == found.positives.tolist()
        assert [t.negatives for t in lists] == found.negatives.tolist()
        assert [t.difficult for t in lists] == [
            [i for i in row if i >= 0] for row in found.difficult.tolist()
        ]
        previous = found.negatives.tolist()


def drawn_pools(miner, state, queries, database):
    """A random pool of each query whose hardest have the ranks the miner drew: the rest may be any."""
    from sfrs.training.mining import pool_ranks

    config, excluded = miner.config, miner.excluded
    generator = torch.Generator()
    generator.set_state(state)
    counts = miner.allowed[miner.queries]
    ranks = pool_ranks(counts, config.negative_pool, config.tuple_negatives, generator).tolist()
    pools = []
    for query, drawn in zip(miner.queries.tolist(), ranks, strict=True):
        near = torch.from_numpy(excluded[query])
        order = (database @ queries[query]).argsort(descending=True)
        negatives = order[~torch.isin(order, near)].tolist()
        rest = random.Random(query).sample(negatives[drawn[-1] + 1 :], config.negative_pool - len(drawn))
        pools.append([negatives[rank] for rank in drawn] + rest)
    return pools
