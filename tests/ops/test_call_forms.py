"""Every form of call that a layer takes is fused or goes to its own ``forward``, and is counted."""

import copy
import functools
import inspect
import pickle
import threading

import pytest
import torch
from foreign_calls import (
    AnyFormNetVLAD,
    ChannelsLastNetVLAD,
    FilledNetVLAD,
    Frames,
    LastOfPyramid,
    MasksItsInput,
    OneOfEach,
    Options,
    PaddedNetVLAD,
    PassesItsMaskOn,
    Scales,
    SumOfMaps,
    WeightedMapNetVLAD,
    WeightedNetVLAD,
    WithToken,
)
from foreign_layers import BatchNormNetVLAD, ConvolutionNetVLAD, D, TwoLayoutsNetVLAD
from torch import nn

import sfrs_ext
from sfrs_ext.compat import Used

pytestmark = pytest.mark.slow

NORMAL = functools.partial(torch.randn, dtype=torch.float64)
MAP, TOKENS, ROWS = NORMAL(2, D, 4, 5), NORMAL(2, 20, D), NORMAL(2, D, 20)
SMALL, OTHER = NORMAL(2, D, 2, 3), NORMAL(2, D + 1, 8, 8)
WEIGHTS = torch.rand(2, 20, dtype=torch.float64).requires_grad_()
BOOL, INT = WEIGHTS > 0.3, (WEIGHTS * 3).long()

FUSED = {
    "by name": (ConvolutionNetVLAD, (), dict(x=MAP)),
    "a mask that is ignored": (BatchNormNetVLAD, (TOKENS, BOOL), {}),
    "a mask that is ignored, by name": (BatchNormNetVLAD, (TOKENS,), dict(mask="anything")),
    "an argument that another forward ignores": (PassesItsMaskOn, (TOKENS, BOOL, True), {}),
    "the default, given": (WeightedNetVLAD, (TOKENS, None), {}),
    "a default of an option, given": (Options, (TOKENS,), dict(raw=False, save_to="")),
    "weights": (WeightedNetVLAD, (TOKENS, WEIGHTS), {}),
    "weights by name": (WeightedNetVLAD, (), dict(mask=WEIGHTS, x=TOKENS)),
    "what is true, as weights": (WeightedNetVLAD, (TOKENS,), dict(mask=BOOL)),
    "whole numbers as weights": (WeightedNetVLAD, (TOKENS,), dict(mask=INT)),
    "weights of a map": (WeightedMapNetVLAD, (MAP,), dict(reweighting=WEIGHTS.view(2, 1, 4, 5))),
    "weights of a map's positions in a row": (WeightedMapNetVLAD, (ROWS,), dict(reweighting=WEIGHTS)),
    "padding": (PaddedNetVLAD, (TOKENS,), dict(padding=BOOL)),
    "what is not zero": (FilledNetVLAD, (TOKENS,), dict(x_mask=INT)),
    "weights that are not zero": (FilledNetVLAD, (TOKENS, WEIGHTS), {}),
    "maps": (AnyFormNetVLAD, (MAP,), {}),
    "positions where maps are taken too": (AnyFormNetVLAD, (ROWS,), {}),
    "a map without a batch": (AnyFormNetVLAD, (MAP[0],), {}),
    "positions without a batch": (AnyFormNetVLAD, (ROWS[0],), {}),
    "channels last": (ChannelsLastNetVLAD, (MAP.movedim(1, -1),), {}),
    "tokens without a batch, with one in the result": (ChannelsLastNetVLAD, (TOKENS[0],), {}),
    "as many positions as channels": (functools.partial(TwoLayoutsNetVLAD, True), (NORMAL(2, D, D),), {}),
    "as many channels as positions": (functools.partial(TwoLayoutsNetVLAD, False), (NORMAL(2, D, D),), {}),
    "a list of inputs": (OneOfEach, ([TOKENS, ROWS.mT[:, :7], TOKENS[:1]],), {}),
    "a list of sequences": (Frames, ([TOKENS[0], TOKENS[1, :3]],), {}),
    "a tuple of maps": (Scales, ((MAP, SMALL),), {}),
    "a pyramid": (LastOfPyramid, ([OTHER, MAP],), {}),
    "a map and a token": (WithToken, ((MAP, NORMAL(2, D)),), {}),
}

OWN = {
    "a mask that does something else": (MasksItsInput, (TOKENS, WEIGHTS), {}, "argument mask"),
    "an option": (Options, (TOKENS,), dict(raw=True), "argument raw"),
    "an option that is not named": (Options, (TOKENS,), dict(anything=1), "argument anything"),
    "another result": (FilledNetVLAD, (TOKENS,), dict(flatten=False), "argument flatten"),
    "weights in another dtype": (WeightedNetVLAD, (TOKENS, WEIGHTS.float()), {}, "another form of mask"),
    "weights of another shape": (WeightedNetVLAD, (TOKENS, WEIGHTS[:1]), {}, "another form of mask"),
    "a sum of maps": (SumOfMaps, ([MAP, SMALL],), {}, "a list of inputs"),
    "an empty list": (OneOfEach, ([],), {}, "a list of inputs"),
}


def gradients(model: nn.Module, args: tuple, kwargs: dict) -> list:
    """Results, and gradients of parameters and weights."""
    WEIGHTS.grad = None
    results = model(*args, **kwargs)
    parts = results if isinstance(results, (list, tuple)) else [results]
    if parts:
        sum((r * torch.arange(r.numel()).sin().view_as(r)).sum() for r in parts).backward()
    return [type(results), *parts, *(p.grad for p in model.parameters()), WEIGHTS.grad]


def compare(make, args: tuple, kwargs: dict) -> Used:
    """Call a layer before and after; returns what is reported about the call."""
    torch.manual_seed(0)
    model = make().double()
    own = copy.deepcopy(model)
    assert sfrs_ext.accelerate(model).replaced
    for ours, theirs in zip(gradients(model, args, kwargs), gradients(own, args, kwargs), strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
            assert ours.stride() == theirs.stride()
        else:
            assert ours is theirs
    return sfrs_ext.restore(model).restored[0]


@pytest.mark.parametrize("call", FUSED)
def test_a_call_that_was_found_out_is_fused(call):
    used = compare(*FUSED[call])
    assert (used.fused, used.own) == (1, {})


@pytest.mark.parametrize("call", OWN)
def test_any_other_call_goes_to_the_layers_own_forward_and_is_counted(call):
    make, args, kwargs, why = OWN[call]
    used = compare(make, args, kwargs)
    assert (used.fused, used.own) == (0, {why: 1})


def test_what_the_layer_refuses_it_still_refuses():
    model = WeightedNetVLAD().double()
    sfrs_ext.accelerate(model)
    for args, kwargs in (
        ((), {}),
        ((TOKENS, None, 3), {}),
        ((TOKENS,), dict(x=TOKENS)),
        ((TOKENS,), dict(y=1)),
    ):
        with pytest.raises(TypeError, match=r"forward\(\)"):
            model(*args, **kwargs)
    with pytest.raises(RuntimeError):
        model(TOKENS[..., 1:])


def test_trying_arguments_out_does_nothing_that_options_ask_for():
    sfrs_ext.accelerate(Options())
    assert Options.touched == []


def test_the_report_says_which_calls_are_fused_and_which_are_not():
    lines = [
        str(sfrs_ext.accelerate(make()).replaced[0]).split("; ", 2)[2] for make in (FilledNetVLAD, Options)
    ]
    assert lines == [
        "[B, N, D] -> [B, K*D]; mask: x_mask [B, N]; own forward: flatten; intra + L2 norm",
        "[B, N, D] -> [B, K*D]; own forward: **options, save_to, raw; input + intra + L2 norm",
    ]
    assert "lists of [N, D]: their results in one batch" in str(sfrs_ext.accelerate(Frames()))
    assert "own forward: lists" in str(sfrs_ext.accelerate(SumOfMaps()))
    assert "ignored: mask, verbose" in str(sfrs_ext.accelerate(PassesItsMaskOn()))


def test_calls_are_counted_per_layer_and_both_reports_say_how_many():
    model = nn.ModuleDict({"a": WeightedNetVLAD(), "b": nn.Sequential(Frames())}).double()
    sfrs_ext.accelerate(model)
    for _ in range(3):
        model["a"](TOKENS)
    model["a"](TOKENS, WEIGHTS[:1])
    report = sfrs_ext.accelerate(model)
    assert str(report).splitlines() == [
        "sfrs_ext.accelerate: 0 replaced, 2 fused before, 0 left alone",
        "  fused       a (WeightedNetVLAD): 3 calls fused, 1 by its own forward (another form of mask: 1)",
        "  fused       b.0 (Frames): 0 calls fused, 0 by its own forward",
    ]
    restored = sfrs_ext.restore(model)
    assert restored.restored == report.fused
    assert str(restored).splitlines()[:2] == [
        "sfrs_ext.restore: 2 restored",
        "  restored    a (WeightedNetVLAD): 3 calls fused, 1 by its own forward (another form of mask: 1)",
    ]
    assert str(sfrs_ext.restore(model)) == "sfrs_ext.restore: nothing in this model is fused"
    with pytest.raises(TypeError, match="restore: model must be a torch.nn.Module, but is list"):
        sfrs_ext.restore([model])


def test_copies_count_from_zero_and_by_themselves():
    model = WeightedNetVLAD().double()
    sfrs_ext.accelerate(model)
    model(TOKENS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert sfrs_ext.accelerate(other).fused[0].fused == 0
        other(TOKENS)
        assert sfrs_ext.accelerate(other).fused[0].fused == sfrs_ext.accelerate(model).fused[0].fused == 1


def test_calls_of_replicas_in_threads_are_all_counted():
    model = WeightedNetVLAD().double()
    sfrs_ext.accelerate(model)

    def call(replica: nn.Module) -> None:  # as DataParallel makes and calls them
        for name, parameter in model.named_parameters(recurse=False):
            setattr(replica, name, parameter)
        replica.fc = model.fc
        for _ in range(50):
            replica(TOKENS)

    threads = [threading.Thread(target=call, args=(model._replicate_for_data_parallel(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sfrs_ext.restore(model).restored[0].fused == 400


@pytest.mark.parametrize("make", (ConvolutionNetVLAD, WeightedMapNetVLAD, Options, Frames))
def test_the_signature_is_kept(make):
    model = make()
    before = inspect.signature(model.forward)
    sfrs_ext.accelerate(model)
    assert inspect.signature(model.forward) == before
    assert model.forward.__doc__ == make.forward.__doc__ and model.forward.__name__ == "forward"


@pytest.mark.filterwarnings("ignore")  # torch.export's own
@pytest.mark.parametrize("strict", (False, True))
def test_export_takes_dynamic_shapes_by_name_and_counts_once(strict):
    model = ConvolutionNetVLAD().double().eval()
    sfrs_ext.accelerate(model)
    shapes = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=2)}}
    exported = torch.export.export(model, (MAP,), dynamic_shapes=shapes, strict=strict)
    assert any("sfrs_ext.aggregate" in str(node.target) for node in exported.graph.nodes)
    assert sfrs_ext.restore(model).restored[0].fused == 1
    x = NORMAL(3, D, 6, 5)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.filterwarnings("ignore")  # torch.export's own
def test_export_takes_weights_of_dynamic_shapes_by_name():
    model = WeightedMapNetVLAD().double().eval()
    sfrs_ext.accelerate(model)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=2)}
    weights = dict(reweighting=WEIGHTS.detach().view(2, 1, 4, 5))
    exported = torch.export.export(model, (MAP,), weights, dynamic_shapes={"x": sizes, "reweighting": sizes})
    assert sfrs_ext.restore(model).restored[0].fused == 1
    x, weights = NORMAL(3, D, 6, 5), torch.rand(3, 1, 6, 5, dtype=torch.float64)
    result = exported.module()(x, reweighting=weights)
    torch.testing.assert_close(result, model(x, reweighting=weights))


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("call", [name for name, (make, *_) in FUSED.items() if make is not Frames])
def test_calls_compile_without_a_graph_break_and_count_once_each_time_they_are_traced(call):
    make, args, kwargs = FUSED[call]
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = make().double()
    sfrs_ext.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = [compiled(*args, **kwargs) for _ in range(3)]
    assert sfrs_ext.accelerate(model).fused[0].fused == 1
    torch.testing.assert_close(results[-1], model(*args, **kwargs))
