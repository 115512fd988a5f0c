"""``sfrs_ext.nn.NetVLAD`` reads every form of its weights, and refuses wrong arguments by name."""

import pytest
import torch
from torch import nn

import sfrs_ext

CENTERS, FEATURES = torch.randn(3, 8), torch.randn(20, 8)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 1), (3, 8, 1, 1)], ids=["Linear", "Conv1d", "Conv2d"])
@pytest.mark.parametrize("prefix", ["", "pool.vlad."], ids=["alone", "in a network"])
@pytest.mark.parametrize("assign", [False, True])
def test_weights_of_a_layer_for_tokens_are_read(shape, prefix, assign):
    state = {"conv.weight": torch.randn(shape), "conv.bias": torch.randn(3), "centroids": CENTERS}
    layer = sfrs_ext.nn.NetVLAD(3, 8, bias=True)
    network = nn.ModuleDict({"pool": nn.ModuleDict({"vlad": layer})}) if prefix else layer
    given = {prefix + key: tensor for key, tensor in state.items()}
    assert str(network.load_state_dict(given, assign=assign)) == "<All keys matched successfully>"
    assert torch.equal(layer.weight, state["conv.weight"].view(3, 8))
    assert given[prefix + "conv.weight"].shape == shape  # the caller's own stays
    x = torch.randn(2, 8, 4, 5)
    expected = sfrs_ext.netvlad(x, state["conv.weight"].view(3, 8), CENTERS, state["conv.bias"])
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("shape", [(8, 3), (1, 3, 8), (3, 8, 2), (3, 8, 3, 3), (4, 8, 1)], ids=str)
def test_weights_of_other_shapes_are_refused(shape):
    with pytest.raises(RuntimeError, match="size mismatch for conv.weight"):
        sfrs_ext.nn.NetVLAD(3, 8).load_state_dict({"conv.weight": torch.ones(shape), "centroids": CENTERS})


def test_keys_with_a_prefix_are_refused_by_their_prefixes():
    state = sfrs_ext.nn.NetVLAD(3, 8).state_dict()
    layer = sfrs_ext.nn.NetVLAD(3, 8)
    found = {f"module.net_vlad.{key}": tensor for key, tensor in state.items()} | {"module.fc": CENTERS}
    with pytest.raises(
        RuntimeError, match="^NetVLAD.load_state_dict: .* 'module.net_vlad.': load {k.*}$"
    ) as error:
        layer.load_state_dict(found)
    code = str(error.value).rpartition(": load ")[2]
    layer.load_state_dict(eval(code, {"state_dict": found}))  # what the message says to load
    assert torch.equal(layer.centroids, state["centroids"])
    two = found | {f"teacher.{key}": tensor for key, tensor in state.items()}
    with pytest.raises(RuntimeError, match="have a prefix, 'module.net_vlad.' and 'teacher.': load"):
        layer.load_state_dict(two)
    assert layer.load_state_dict(found, strict=False).missing_keys == ["centroids", "conv.weight"]


CONSTRUCTOR = (
    (dict(num_clusters=0), ValueError, "num_clusters is 0, but must be at least 1"),
    (dict(num_clusters="3"), TypeError, "num_clusters must be an integer, but is '3'"),
    (dict(dim=8.0), TypeError, "dim must be an integer, but is 8.0"),
    (dict(dim=-8), ValueError, "dim is -8, but must be at least 1"),
    (dict(dim=CENTERS), TypeError, "dim must be an integer, but is a Tensor"),
    (dict(ghost_clusters=None), TypeError, "ghost_clusters must be an integer, but is None"),
    (dict(ghost_clusters="1"), TypeError, "ghost_clusters must be an integer, but is '1'"),
    (dict(ghost_clusters=1.5), TypeError, "ghost_clusters must be an integer, but is 1.5"),
    (dict(ghost_clusters=-1), ValueError, "ghost_clusters is -1, but must be at least 0"),
    (dict(bias=CENTERS[:, 0]), TypeError, "bias must be True or False, but is a Tensor"),
    (dict(normalize_input=None), TypeError, "normalize_input must be True or False, but is a NoneType"),
    (dict(assignment="conv"), TypeError, "assignment must be a torch.nn.Module or None, but is a str"),
)


@pytest.mark.parametrize(("wrong", "error", "message"), CONSTRUCTOR)
@pytest.mark.parametrize("layer", (sfrs_ext.nn.NetVLAD, sfrs_ext.nn.RegionNetVLAD))
def test_the_constructor_names_the_wrong_argument(layer, wrong, error, message):
    with pytest.raises(error, match=f"^NetVLAD: {message}$"):
        layer(**(dict(num_clusters=3, dim=8) | wrong))


def test_integers_of_other_libraries_are_sizes():
    numpy = pytest.importorskip("numpy")
    layer = sfrs_ext.nn.NetVLAD(numpy.int64(3), torch.tensor(8), ghost_clusters=numpy.uint8(1))
    assert type(layer.dim) is int and layer.weight.shape == (4, 8)


NAN = CENTERS.where(CENTERS < CENTERS.max(), torch.nan)
CLUSTERS = (
    ((CENTERS.tolist(), FEATURES), TypeError, "centers must be a torch.Tensor, but is list"),
    ((CENTERS, None), TypeError, "features must be a torch.Tensor, but is NoneType"),
    ((CENTERS.int(), FEATURES), TypeError, "centers must be of a floating dtype, but is torch.int32"),
    (
        (CENTERS, FEATURES.double()),
        TypeError,
        "features must be torch.float32 as centers is, but is torch.float64",
    ),
    ((CENTERS, FEATURES.to("meta")), ValueError, "features is on meta, but centers is on cpu"),
    ((CENTERS[:2], FEATURES), ValueError, r"centers is \[2, 8\], but must be \[3, 8\] \(K, D\)"),
    ((CENTERS[0], FEATURES), ValueError, r"centers is \[8\], but must be \[3, 8\] \(K, D\)"),
    (
        (CENTERS, FEATURES[:, :7]),
        ValueError,
        r"features is \[20, 7\], but must be \[n, 8\] with n of at least 1",
    ),
    ((CENTERS, FEATURES[:0]), ValueError, r"features is \[0, 8\], but must be \[n, 8\] with n of at least 1"),
    ((CENTERS, FEATURES[None]), ValueError, r"features is \[1, 20, 8\], but must be \[n, 8\]"),
    ((NAN, FEATURES), ValueError, "centers must be finite, but 1 values are NaN or infinite"),
    ((CENTERS, FEATURES / 0), ValueError, "features must be finite, but 160 values are NaN or infinite"),
)


@pytest.mark.parametrize(("arguments", "error", "message"), CLUSTERS)
def test_initialisation_names_the_wrong_argument_and_leaves_the_layer(arguments, error, message):
    layer = sfrs_ext.nn.NetVLAD(3, 8)
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    with pytest.raises(error, match=f"^init_from_clusters: {message}"):
        layer.init_from_clusters(*arguments)
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


def test_a_file_of_a_layer_for_tokens_is_read_and_the_layers_of_others_are_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    weight = torch.randn(4, 8, 1)
    safetensors.save_file({"pool.conv.weight": weight, "pool.centroids": CENTERS}, tmp_path / "one")
    layer = sfrs_ext.nn.NetVLAD.load(tmp_path / "one")
    assert torch.equal(layer.weight, weight[..., 0]) and layer.ghost_clusters == 1
    two = {"a.centroids": CENTERS, "b.centroids": CENTERS.clone()}
    safetensors.save_file(two, tmp_path / "two")
    with pytest.raises(
        ValueError, match=r"two has 2 tensors named centroids \(a.centroids, b.centroids\); expected one"
    ):
        sfrs_ext.nn.NetVLAD.load(tmp_path / "two")
    content = (tmp_path / "one").read_bytes()
    for damaged in (b"", content[:40], content[:-8], content.replace(b"[4,8,1]", b"[5,8,1]")):
        (tmp_path / "one").write_bytes(damaged)
        with pytest.raises(ValueError, match="one is no safetensors file, or a damaged one"):
            sfrs_ext.nn.NetVLAD.load(tmp_path / "one")
    safetensors.save_file({"centroids": CENTERS[0], "conv.weight": weight}, tmp_path / "one")
    with pytest.raises(ValueError, match=r"centroids are \[8\] and conv.weight is \[4, 8, 1\]"):
        sfrs_ext.nn.NetVLAD.load(tmp_path / "one")
