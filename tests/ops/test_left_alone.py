"""``sfrs_ext.accelerate`` leaves alone what it does not recognise, and its report says what it did."""

import pytest
import torch
import torch.nn.functional as F
from foreign_layers import (
    BatchNormNetVLAD,
    ConvolutionNetVLAD,
    K,
    RegionNetwork,
    TemperatureNetVLAD,
    normalised,
    vlad_of,
)
from other_aggregators import SAGE, SALAD, AnyLoc, HardVLAD, MixVPR
from special_layers import SPECIAL, Special
from torch import nn

import sfrs_ext
from sfrs_ext.compat import structure

pytestmark = pytest.mark.slow


class ReturnsTuple(ConvolutionNetVLAD):
    def forward(self, x):
        return super().forward(x), x


class DropsOut(ConvolutionNetVLAD):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.1, self.training))


class HoldsItsAssignment(ConvolutionNetVLAD):
    def forward(self, x):
        weight, self.conv.weight.requires_grad = self.conv.weight, False
        try:
            return super().forward(x)
        finally:
            weight.requires_grad = True


class AddsEps(ConvolutionNetVLAD):
    def __init__(self):
        super().__init__(normalize_input=False)

    def forward(self, x):
        return super().forward(x / (x.norm(dim=1, keepdim=True) + 1e-6))


class TakesRoots(ConvolutionNetVLAD):
    def forward(self, x):
        result = super().forward(x)
        return result.sign() * result.abs().sqrt()


class AddsCentroids(ConvolutionNetVLAD):
    """Equal to NetVLAD as long as its centroids are zero."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.centroids)

    def forward(self, x):
        x = F.normalize(x, dim=1)
        return normalised(vlad_of(x.flatten(2), self.conv(x).flatten(2).softmax(1), -self.centroids))


class ContextualVLAD(ConvolutionNetVLAD):
    def __init__(self):
        super().__init__()
        self.reweighting = nn.Conv2d(10, 1, kernel_size=3, padding=1)

    def forward(self, x):
        return super().forward(x * self.reweighting(x))


class UsesMoreInTrainingOnly(ContextualVLAD):
    def forward(self, x):
        return super().forward(x) if self.training else ConvolutionNetVLAD.forward(self, x)


class NeedsALength(ConvolutionNetVLAD):
    def forward(self, x, length):
        return super().forward(x[..., :length])


class RemembersItsAssignment(ConvolutionNetVLAD):
    """For a picture of it, say."""

    def __init__(self, in_training_only: bool = False):
        super().__init__()
        self.in_training_only, self.last = in_training_only, None

    def forward(self, x):
        if self.training or not self.in_training_only:
            self.last = self.conv(F.normalize(x, dim=1)).flatten(2).softmax(1).detach()
        return super().forward(x)


class CachesOnce(ConvolutionNetVLAD):
    def forward(self, x):
        if not hasattr(self, "grid"):
            self.grid = torch.ones(x.shape[-2:])
        return super().forward(x)


class KeepsHistory(ConvolutionNetVLAD):
    def __init__(self):
        super().__init__()
        self.history = []

    def forward(self, x):
        self.history.append(x.shape)
        return super().forward(x)


class CountsInATensor(ConvolutionNetVLAD):
    def __init__(self):
        super().__init__()
        self.steps = torch.zeros(())

    def forward(self, x):
        self.steps += 1
        return super().forward(x)


class FillsABuffer(ConvolutionNetVLAD):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x):
        self.mean = x.detach().mean((0, 2, 3))
        return super().forward(x)


class RefusesFloat64(ConvolutionNetVLAD):
    def _apply(self, function, recurse=True):
        raise RuntimeError("stays in float32")


class HasNoSubclasses(ConvolutionNetVLAD):
    def __init_subclass__(cls):
        raise TypeError("final")


class VLADHead(nn.Module):
    pass


def hooked() -> nn.Module:
    layer = ConvolutionNetVLAD()
    layer.conv.register_forward_hook(lambda *_: None)
    return layer


def overridden() -> nn.Module:
    layer = ConvolutionNetVLAD()
    layer.forward = layer.forward
    return layer


def lazy() -> nn.Module:
    layer = ConvolutionNetVLAD()
    layer.conv = nn.LazyConv2d(K, 1, bias=False)
    return layer


def traced() -> nn.Module:
    return torch.jit.trace(ConvolutionNetVLAD(), torch.randn(1, 10, 3, 3))


def copied_with_difficulty() -> nn.Module:
    layer = ConvolutionNetVLAD()
    layer.cache = layer.centroids * 2  # not a leaf
    return layer


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (ReturnsTuple, "its result is a tuple"),
        (DropsOut, "in training its result differs"),
        (HoldsItsAssignment, "in evaluation its gradient of conv.weight differs"),
        (AddsEps, "not NetVLAD: the closest, NetVLAD with input .* norm, differs by"),
        (TakesRoots, "not NetVLAD: the closest"),
        (AddsCentroids, "not NetVLAD: the closest"),
        (HardVLAD, "not NetVLAD: the closest"),
        (ContextualVLAD, "uses more than a NetVLAD layer's tensors: reweighting"),
        (UsesMoreInTrainingOnly, "uses more than a NetVLAD layer's tensors: reweighting"),
        (NeedsALength, r"does not run on \[B, D, H, W\] \(TypeError: .* missing .* 'length'\)"),
        (VLADHead, r"no assignment weights \[K, D\]"),
        (hooked, "conv has hooks"),
        (overridden, "forward is overridden on the instance"),
        (traced, "torch.jit"),
        (copied_with_difficulty, "cannot be copied"),
        (RemembersItsAssignment, "its forward remembers something, .*: last$"),
        (lambda: RemembersItsAssignment(in_training_only=True), "its forward remembers something, .*: last$"),
        (CachesOnce, "its forward remembers something, .*: grid$"),
        (CountsInATensor, "its forward remembers something, .*: steps$"),
        (KeepsHistory, "its forward remembers something, .*: history$"),
        (FillsABuffer, "its mean differs"),
        (RefusesFloat64, "cannot be run beside the fused form: RuntimeError: stays in float32"),
        (HasNoSubclasses, "cannot be run beside the fused form: TypeError: final"),
        (lazy, "have no shapes before the model has run once: conv.weight"),
        (lambda: ConvolutionNetVLAD().to("meta"), "on the device meta"),
        (lambda: sfrs_ext.nn.NetVLAD(K, 10), "a layer of sfrs_ext.nn"),
    ],
)
def test_what_computes_something_else_is_left_alone_and_said_so(make, reason):
    model = nn.Sequential(make())
    before = type(model[0])
    report = sfrs_ext.accelerate(model)
    assert not report.replaced and type(model[0]) is before
    assert [entry.paths for entry in report.left_alone] == [("0",)]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.left_alone[0].reason)


@pytest.mark.parametrize("layer", SPECIAL, ids=lambda layer: layer.__name__)
def test_what_differs_for_special_inputs_only_is_left_alone(layer):
    report = sfrs_ext.accelerate(nn.Sequential(Special(), layer()))
    assert [entry.paths for entry in report.replaced] == [("0",)]
    with pytest.raises(AssertionError, match=f"(result|gradient of .*) differs .*{SPECIAL[layer]}"):
        raise AssertionError(report.left_alone[0].reason)


def test_what_gives_no_number_for_special_inputs_is_replaced():
    class DividesByNorms(ConvolutionNetVLAD):
        def forward(self, x):
            x = x / x.norm(dim=1, keepdim=True)  # NaN for a position of zeros
            if x.shape[2:] == (1, 1):
                raise ValueError("too small")
            return normalised(vlad_of(x.flatten(2), self.conv(x).flatten(2).softmax(1), self.centroids))

    class NeverMinds(DividesByNorms):
        def forward(self, x):
            return super().forward(x * (x.norm() > 1e-9) / (x.norm() > 1e-9))

    report = sfrs_ext.accelerate(nn.Sequential(DividesByNorms(), NeverMinds()))
    assert [entry.layer for entry in report.replaced] == ["NeverMinds"]
    assert "for features below every eps" in report.left_alone[0].reason


@pytest.mark.parametrize("layer", (SALAD, MixVPR, SAGE, AnyLoc))
def test_other_aggregators_are_named_as_not_netvlad(layer):
    report = sfrs_ext.accelerate(nn.ModuleDict({"backbone": nn.Conv2d(3, 10, 1), "aggregator": layer()}))
    assert not report.replaced
    (line,) = str(report).splitlines()[1:]
    assert line.startswith(f"  left alone  aggregator ({layer.__name__}): not NetVLAD: {layer.__name__} ")


def test_layers_of_a_like_name_are_no_aggregators():
    class SAGEConv(nn.Linear):
        pass

    class MessagePassing(nn.Linear):
        pass

    assert not sfrs_ext.accelerate(nn.Sequential(SAGEConv(3, 3), MessagePassing(3, 3))).left_alone


def test_a_netvlad_layer_of_another_aggregators_name_is_replaced():
    class SALAD(ConvolutionNetVLAD):
        pass

    assert sfrs_ext.accelerate(SALAD()).replaced


def test_a_network_that_is_named_so_is_not_copied(monkeypatch):
    class NetVLADNetwork(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Conv2d(3, 64, 3), nn.Linear(64, 8)

        def __deepcopy__(self, memo):
            raise AssertionError("a network is copied")

    monkeypatch.setattr(structure, "MOST", 1000)
    (entry,) = sfrs_ext.accelerate(NetVLADNetwork()).left_alone
    assert entry.reason == "it has more than a NetVLAD layer's tensors: backbone"


def test_a_second_call_finds_everything_fused():
    model = RegionNetwork()
    sfrs_ext.accelerate(model)
    report = sfrs_ext.accelerate(model)
    assert not report.replaced and not report.left_alone
    assert [(entry.paths, entry.layer) for entry in report.fused] == [(("net_vlad",), "ConvolutionNetVLAD")]


@pytest.mark.filterwarnings("ignore")  # torch's, about nested tensors
def test_models_without_netvlad_are_left_in_peace():
    model = nn.ModuleList([nn.LSTM(8, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Conv2d(3, 3, 1)])
    assert str(sfrs_ext.accelerate(model)) == "sfrs_ext.accelerate: nothing in this model looks like NetVLAD"


def test_the_report_says_what_was_recognised():
    layers = {"regions": RegionNetwork(), "text": BatchNormNetVLAD(2), "soft": TemperatureNetVLAD()}
    report = sfrs_ext.accelerate(nn.ModuleDict(layers | {"other": TakesRoots()}))
    *lines, last = str(report).splitlines()
    assert lines == [
        "sfrs_ext.accelerate: 3 replaced, 1 left alone",
        "  replaced    regions.net_vlad (ConvolutionNetVLAD): NetVLAD; K = 6, D = 10; "
        "[B, D, H, W] -> [B, K, D]; input norm",
        "  replaced    text (BatchNormNetVLAD): NetVLAD, batch norm, ghost clusters: 2; K = 6, D = 10; "
        "[B, N, D] -> [B, D*K]; ignored: mask; intra + L2 norm",
        "  replaced    soft (TemperatureNetVLAD): NetVLAD, scale temperature; K = 6, D = 10; "
        "[B, D, H, W] -> [B, D, K]; input norm",
    ]
    assert (
        str(report)
        .splitlines()[-1]
        .startswith("  left alone  other (TakesRoots): not NetVLAD: the closest, ")
    )


def test_anything_but_a_module_is_refused():
    with pytest.raises(TypeError, match="accelerate: model must be a torch.nn.Module, but is dict"):
        sfrs_ext.accelerate({})
