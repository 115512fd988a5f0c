"""``sfrs_ext.accelerate`` changes how NetVLAD layers compute, and nothing else about a model."""

import copy
import gc
import pickle

import pytest
import torch
from foreign_layers import (
    LAYERS,
    ContiguousNetVLAD,
    ConvolutionNetVLAD,
    D,
    K,
    TwoLayoutsNetVLAD,
    build,
)
from torch import nn

import sfrs_ext
from sfrs_ext import compat
from sfrs_ext.compat import fused
from sfrs_ext.compat import recipe as recipes
from sfrs_ext.compat.recipe import Recipe

pytestmark = pytest.mark.slow

every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture
def fused_calls(monkeypatch) -> list:
    """Grows by one with every call of the fused operator."""
    calls, operator = [], sfrs_ext.netvlad

    def spy(*arguments, **options):
        calls.append(options)
        return operator(*arguments, **options)

    monkeypatch.setattr(recipes._operators, "netvlad", spy)
    return calls


def results_of(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    results = model(x)
    return results if isinstance(results, tuple) else (results,)


def step(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Results, gradients and buffers after one forward and backward."""
    x = x.clone().requires_grad_(True)
    results = results_of(model, x)
    sum((r * torch.arange(r.numel()).to(r).sin().view_as(r)).sum() for r in results).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad}
    found = {f"result {i}": r.detach() for i, r in enumerate(results)} | dict(model.named_buffers())
    return found | {f"gradient of {name}": value for name, value in gradients.items() if value is not None}


@every_layer
@pytest.mark.parametrize("training", (False, True), ids=("evaluation", "training"))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=str)
def test_a_fused_layer_computes_what_it_computed_before(
    name, training, dtype, tolerance, device, fused_calls
):
    model, x = build(name)
    model, x = model.to(device, dtype).train(training), x.to(device, dtype)
    before = step(copy.deepcopy(model), x)
    report = sfrs_ext.accelerate(model)
    assert len(report.replaced) == 1 and not report.left_alone
    fused_calls.clear()
    after = step(model, x)
    assert fused_calls
    assert after.keys() == before.keys()
    least = 1e-2 * max(value.abs().max() for value in before.values())  # some gradients are but rounding
    for what, value in before.items():
        error = (after[what] - value).abs().max() / value.abs().max().clamp_min(least)
        assert after[what].dtype == value.dtype and error <= tolerance, (what, error)


@every_layer
@pytest.mark.parametrize("channels_innermost", (False, True))
def test_a_result_has_the_strides_it_had_before(name, channels_innermost):
    model, x = build(name)
    own = copy.deepcopy(model)
    sfrs_ext.accelerate(model)
    channels = 2 if name in ("tokens", "batch norm", "two layouts") else 1
    x = x.movedim(channels, -1 if channels_innermost else 1).contiguous()
    x = x.movedim(-1 if channels_innermost else 1, channels)
    assert [r.stride() for r in results_of(model, x)] == [r.stride() for r in results_of(own, x)]


def test_a_raw_result_can_be_viewed_as_one_row_per_image():
    model = ContiguousNetVLAD()
    sfrs_ext.accelerate(model)
    x = torch.randn(3, D, 4, 5, requires_grad=True)
    assert model(x).is_contiguous() and model(x).view(3, -1).shape == (3, D * K)
    assert model(x.to(memory_format=torch.channels_last)).is_contiguous()


@every_layer
def test_nothing_else_about_the_model_changes(name):
    model, _ = build(name)
    model.train()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = copy.deepcopy(model.state_dict())
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    random, dtype = torch.get_rng_state(), torch.get_default_dtype()

    sfrs_ext.accelerate(model)

    assert torch.equal(torch.get_rng_state(), random) and torch.get_default_dtype() == dtype
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(value is parameters[key] and value.grad is None for key, value in model.named_parameters())
    assert all(value is buffers[key] for key, value in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert isinstance(model, LAYERS[name][0])
    sfrs_ext.restore(model)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes


@every_layer
def test_copies_pickles_and_loaded_states_are_fused_too(name, fused_calls):
    model, x = build(name)
    sfrs_ext.accelerate(model)
    model.eval()
    pickles = [pickle.dumps(model, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (copy.deepcopy(model), *map(pickle.loads, pickles)):
        other.load_state_dict(model.state_dict())
        fused_calls.clear()
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        assert len(fused_calls) == 2
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}


def test_restore_gives_the_class_back(fused_calls):
    model, x = build("region network")
    sfrs_ext.accelerate(model)
    assert [entry.paths for entry in sfrs_ext.restore(model).restored] == [("net_vlad",)]
    assert type(model.net_vlad) is ConvolutionNetVLAD and not sfrs_ext.restore(model).restored
    fused_calls.clear()
    model(x)
    assert not fused_calls


def test_an_optimiser_made_before_goes_on_training_the_layer():
    model, x = build("convolution")
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    sfrs_ext.accelerate(model)
    before = copy.deepcopy(model.state_dict())
    model(x)[:, ::2].sum().backward()
    optimiser.step()
    assert not any(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_parameters_that_are_replaced_later_are_used():
    model, x = build("convolution with bias")
    twin = copy.deepcopy(model)
    sfrs_ext.accelerate(model)
    for layer in (model, twin):  # as initialisation by k-means does it
        layer.centroids = nn.Parameter(torch.full_like(layer.centroids, 0.3))
        layer.conv.bias = None
    torch.testing.assert_close(model(x), twin(x))


def test_a_number_that_scales_the_logits_may_change_later():
    model, x = build("temperature")
    twin = copy.deepcopy(model)
    sfrs_ext.accelerate(model)
    for layer in (model, twin):
        layer.temperature = 0.03
    torch.testing.assert_close(model(x), twin(x))


def test_a_layer_used_twice_is_replaced_once_and_reported_with_both_paths():
    layer = ConvolutionNetVLAD()
    report = sfrs_ext.accelerate(nn.ModuleDict({"query": layer, "gallery": nn.Sequential(nn.ReLU(), layer)}))
    assert [entry.paths for entry in report.replaced] == [("query", "gallery.1")]


def test_what_was_not_checked_goes_to_the_layers_own_forward(fused_calls):
    model, x = build("batch norm")
    sfrs_ext.accelerate(model)
    fused_calls.clear()
    for other in (x.unsqueeze(0), x[..., 1:], x.long(), None):
        with pytest.raises((RuntimeError, AttributeError)):
            model(other)
    assert not fused_calls
    assert sum(sfrs_ext.restore(model).restored[0].own.values()) == 4


@pytest.mark.parametrize("prefers_tokens", (False, True))
@pytest.mark.parametrize("shape", [(2, 24, D), (2, D, 24), (2, D, D)], ids=str)
def test_a_layer_that_takes_two_layouts_takes_both_as_before(prefers_tokens, shape, fused_calls):
    torch.manual_seed(0)
    own, x = TwoLayoutsNetVLAD(prefers_tokens).eval(), torch.randn(shape)
    model = copy.deepcopy(own)
    assert sfrs_ext.accelerate(model).replaced
    fused_calls.clear()
    torch.testing.assert_close(model(x), own(x))
    assert fused_calls


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_more_clusters_than_the_kernels_take_on_cuda_go_to_the_layers_own_forward(dtype, monkeypatch):
    from torch._subclasses import FakeTensorMode

    monkeypatch.setattr(fused._cuda, "missing", None)
    most = 256 if dtype == torch.float64 else 320
    with FakeTensorMode():
        x = torch.empty(2, D, 4, 5, device="cuda", dtype=dtype)
    for columns, taken in ((most, True), (most + 1, False)):
        recipe = Recipe("conv", clusters=K, ghost_clusters=columns - K, dim=D)
        assert fused.has_kernels(recipe, x) == taken


def test_an_error_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    model = nn.Sequential(ConvolutionNetVLAD(), ConvolutionNetVLAD())
    find_recipe, layers = compat.find_recipe, list(model)

    def interrupted(layer):
        if layer is layers[1]:
            raise KeyboardInterrupt
        return find_recipe(layer)

    monkeypatch.setattr(compat, "find_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sfrs_ext.accelerate(model)
    assert [type(layer) for layer in model] == [ConvolutionNetVLAD] * 2


def test_lazy_layers_elsewhere_in_the_model_do_no_harm():
    model = nn.Sequential(nn.LazyConv2d(D, 1), ConvolutionNetVLAD(), nn.LazyLinear(3))
    assert [entry.paths for entry in sfrs_ext.accelerate(model).replaced] == [("1",)]


def test_hooks_of_the_layer_are_called_by_its_users_only():
    model, x = build("convolution")
    seen = []
    model.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    sfrs_ext.accelerate(model)
    assert seen == []
    model(x)
    assert seen == [(len(x), model.centroids.numel())]


def test_a_parametrised_convolution_keeps_its_parametrisation():
    model, x = build("convolution")
    nn.utils.parametrizations.weight_norm(model.conv)
    before = step(copy.deepcopy(model), x)
    assert sfrs_ext.accelerate(model).replaced
    for what, value in step(model, x).items():
        torch.testing.assert_close(value, before[what], msg=what)
    assert any("original0" in what for what in before)


def test_autocast_gives_float32_like_the_layer_itself():
    model, x = build("convolution")
    model, x = model.float(), x.float()
    exact = model(x)
    sfrs_ext.accelerate(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, from_bfloat16 = model(x), model(x.bfloat16())
    assert result.dtype == from_bfloat16.dtype == exact.dtype
    torch.testing.assert_close(result, exact)
    torch.testing.assert_close(from_bfloat16, exact, atol=2e-2, rtol=0)


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("name", ["convolution", "batch norm and ghost clusters", "temperature"])
def test_a_fused_layer_compiles_without_a_graph_break(name):
    model, x = build(name)
    expected = step(copy.deepcopy(model), x)
    sfrs_ext.accelerate(model)
    result = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(result.detach(), expected["result 0"])


def test_a_wrapped_model_is_found_inside_its_wrapper(tmp_path):
    model, x = build("convolution")
    expected = step(copy.deepcopy(model), x)
    meeting = f"file://{tmp_path}/meeting"
    wrapped = None
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert sfrs_ext.accelerate(wrapped).replaced[0].paths == ("module",)
        after = step(wrapped, x)
    finally:
        # The wrapper goes first: as the group's last owner it would join the group's threads while it holds
        # the interpreter's lock, which they may be waiting for.
        wrapped = None
        gc.collect()
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(after["result 0"], expected["result 0"])
    torch.testing.assert_close(model.conv.weight.grad, expected["gradient of conv.weight"])
