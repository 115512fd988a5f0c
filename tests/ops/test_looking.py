"""``sfrs_ext.accelerate`` looks without a trace: in the model, in torch, in what the layers' code keeps."""

import contextlib
import copy
import functools
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_layers import BatchNormNetVLAD, ConvolutionNetVLAD, D, K, build
from remembering_layers import CACHE, KEEPS, MakesACacheInItsClass, UsesAnLruCache, grid
from torch import nn
from torch.nn.utils import parametrizations

import sfrs_ext

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layer", KEEPS, ids=lambda layer: layer.__name__)
def test_what_a_layers_code_keeps_elsewhere_is_put_back_and_named(layer):
    name, kept = KEEPS[layer]
    layer()(torch.randn(1, D, 2, 3))
    before = copy.deepcopy(kept())
    (entry,) = sfrs_ext.accelerate(layer()).left_alone
    assert entry.reason.startswith("its forward remembers something") and entry.reason.endswith(name)
    assert repr(kept()) == repr(before)


def test_a_cache_made_by_looking_is_not_left_in_the_class():
    (entry,) = sfrs_ext.accelerate(MakesACacheInItsClass()).left_alone
    assert entry.reason.endswith("remembering_layers.MakesACacheInItsClass.sizes")
    assert not hasattr(MakesACacheInItsClass, "sizes")


def test_a_cache_of_results_holds_none_of_looking():
    grid.cache_clear()
    model = UsesAnLruCache()
    assert sfrs_ext.accelerate(model).replaced
    assert grid.cache_info().currsize == 0
    sfrs_ext.restore(model)
    model(torch.randn(1, D, 3, 4))
    assert grid(3, 4).dtype == torch.float32


@pytest.mark.parametrize("norm", (parametrizations.spectral_norm, parametrizations.weight_norm))
@pytest.mark.parametrize("layer", (ConvolutionNetVLAD, lambda: build("unused parts")[0].float()))
def test_a_parametrised_convolution_in_training_stays_as_it_is(norm, layer):
    torch.manual_seed(0)
    model = layer()
    norm(model.conv)
    before = {name: (t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    assert sfrs_ext.accelerate(model).replaced
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name][0]) and tensor._version == before[name][1], name


def test_a_step_of_a_spectrally_normed_layer_moves_its_vectors_as_before():
    torch.manual_seed(0)
    model = ConvolutionNetVLAD().double()
    parametrizations.spectral_norm(model.conv)
    own, x = copy.deepcopy(model), torch.randn(2, D, 4, 5, dtype=torch.float64)
    sfrs_ext.accelerate(model)
    for layer in (model, own):
        layer(x)[:, ::3].sum().backward()
    for name, tensor in own.state_dict(keep_vars=True).items():
        ours = model.state_dict(keep_vars=True)[name]
        torch.testing.assert_close(ours, tensor)
        assert (ours.grad is None) == (tensor.grad is None)


def test_parts_that_are_not_used_get_no_gradient():
    model, x = build("unused parts")
    sfrs_ext.accelerate(model)
    model(x).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"batch_norm.weight", "batch_norm.bias", "conv1.weight", "conv1.bias"}
    assert model.batch_norm.num_batches_tracked == 0


def test_flags_gradients_and_counters_stay():
    model, x = build("batch norm")
    model(x).sum().backward()
    model.batch_norm.eval()
    model.clusters.requires_grad_(False)
    before = {
        name: (p, p.grad, p.grad.clone(), p.requires_grad, p._version) for name, p in model.named_parameters()
    }
    assert sfrs_ext.accelerate(model).replaced
    assert model.training and not model.batch_norm.training and model.batch_norm.num_batches_tracked == 1
    for name, parameter in model.named_parameters():
        same, grad, values, requires_grad, version = before[name]
        assert parameter is same and parameter.grad is grad and torch.equal(grad, values)
        assert (parameter.requires_grad, parameter._version) == (requires_grad, version)


class DrawsEverywhere(ConvolutionNetVLAD):
    def forward(self, x):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        return super().forward(x) + 0 * (torch.rand(1) + random.random() + np.random.rand())


def test_random_states_stay():
    model = DrawsEverywhere()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    sfrs_ext.accelerate(model)
    assert torch.equal(torch.rand(3), expected[0]) and (random.random(), np.random.rand()) == expected[1:]


def test_seeds_of_other_devices_are_not_set(monkeypatch):
    def refuse(seed):
        raise AssertionError("CUDA's seed is set")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    assert sfrs_ext.accelerate(BatchNormNetVLAD(2)).replaced


def test_no_hook_is_called():
    seen = []

    def hook(*arguments):
        seen.append(arguments)

    model, _ = build("convolution")
    model.register_forward_hook(hook)
    model.register_full_backward_hook(hook)
    for parameter in model.parameters():
        parameter.register_hook(hook)
        parameter.register_post_accumulate_grad_hook(hook)
    on_all = torch.nn.modules.module
    handles = [
        on_all.register_module_forward_hook(hook),
        on_all.register_module_forward_pre_hook(hook),
        on_all.register_module_full_backward_hook(hook),
        on_all.register_module_parameter_registration_hook(hook),
    ]
    try:
        assert sfrs_ext.accelerate(model).replaced and not seen
        nn.ReLU()(torch.ones(1))
        assert len(seen) == 2  # hooks on all modules are still there
    finally:
        for handle in handles:
            handle.remove()


class KeepsItsSubclasses(ConvolutionNetVLAD):
    subclasses: list[type] = []

    def __init_subclass__(cls):
        cls.subclasses.append(cls)


def test_no_class_is_registered():
    assert sfrs_ext.accelerate(KeepsItsSubclasses()).replaced
    assert KeepsItsSubclasses.subclasses == []


def test_hooks_anywhere_inside_are_seen():
    model = ConvolutionNetVLAD()
    model.extra = nn.Sequential(nn.Sequential(nn.Identity()))
    model.extra[0][0].register_forward_hook(print)
    assert sfrs_ext.accelerate(model).left_alone[0].reason.startswith("extra.0.0 has hooks")


class CountsItsCopies(ConvolutionNetVLAD):
    copies = ()

    def __deepcopy__(self, memo):
        self.copies = (*self.copies, "one")
        made = type(self)()
        made.load_state_dict(self.state_dict())
        return made


class IsOneAndTheSame(ConvolutionNetVLAD):
    def __deepcopy__(self, memo):
        return self


class SharesItsCentroids(ConvolutionNetVLAD):
    def __deepcopy__(self, memo):
        made = type(self)()
        made.centroids = nn.Parameter(self.centroids.detach())
        return made


def test_what_copying_leaves_in_a_layer_is_put_back():
    model = CountsItsCopies()
    assert "copies" in sfrs_ext.accelerate(model).left_alone[0].reason
    assert model.copies == ()


@pytest.mark.parametrize("layer", (IsOneAndTheSame, SharesItsCentroids))
def test_a_layer_whose_copy_is_itself_is_not_tried_out(layer):
    model = layer().train()
    before = copy.copy(model.state_dict(keep_vars=True))
    values = {name: tensor.clone() for name, tensor in before.items()}
    (entry,) = sfrs_ext.accelerate(model).left_alone
    assert entry.reason == "its copy shares tensors with it, so that it cannot be tried out"
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name] and torch.equal(tensor, values[name]) and tensor.dtype == torch.float32
    assert model.training


class Interrupted(ConvolutionNetVLAD):
    def forward(self, x):
        CACHE["interrupted"] = True
        raise KeyboardInterrupt


def state_of_torch() -> tuple:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        len(torch.nn.modules.module._global_forward_hooks),
        warnings.filters[:],
    )


@pytest.mark.parametrize("layer", (ConvolutionNetVLAD, Interrupted))
@pytest.mark.parametrize(
    "inside",
    [
        contextlib.nullcontext,
        torch.no_grad,
        torch.inference_mode,
        functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        functools.partial(torch.device, "meta"),
    ],
    ids=("nothing", "no_grad", "inference_mode", "autocast", "device meta"),
)
def test_the_state_of_torch_stays_even_where_an_error_ends_it(layer, inside):
    model = layer()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with inside():
            before = state_of_torch()
            if layer is Interrupted:
                with pytest.raises(KeyboardInterrupt):
                    sfrs_ext.accelerate(model)
            else:
                assert sfrs_ext.accelerate(model).replaced
            assert state_of_torch() == before
    finally:
        handle.remove()
    assert "interrupted" not in CACHE


class Warns(ConvolutionNetVLAD):
    def forward(self, x):
        warnings.warn("this layer is old", stacklevel=1)
        return super().forward(x)


def test_a_warning_is_not_used_up():
    model = Warns()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        assert sfrs_ext.accelerate(model).replaced and not shown
        sfrs_ext.restore(model)
        model(torch.randn(1, D, 2, 2))
    assert [str(warning.message) for warning in shown] == ["this layer is old"]


class StopsAtNaN(ConvolutionNetVLAD):
    """As layers do that start a debugger there."""

    def forward(self, x):
        if any(tensor.isnan().any() for tensor in (x, self.conv.weight, self.centroids)):
            raise SystemExit("a debugger starts")
        return super().forward(x)


def test_no_layer_meets_nan():
    assert sfrs_ext.accelerate(StopsAtNaN()).replaced


class ComputesItsAttributes(ConvolutionNetVLAD):
    reads = []

    @property
    def weight(self):
        self.reads.append("weight")
        return F.normalize(self.conv.weight)

    def __getattr__(self, name):
        if name.startswith("lazy"):
            self.reads.append(name)
            return torch.zeros(K)
        return super().__getattr__(name)


def test_attributes_that_are_computed_are_not_read():
    assert sfrs_ext.accelerate(ComputesItsAttributes()).replaced
    assert ComputesItsAttributes.reads == []
