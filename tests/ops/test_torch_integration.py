"""The operators are good citizens of torch: opcheck, torch.compile, autocast, modules, state dicts."""

import pytest
import torch
from problems import SHAPES, Problem, Shape

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.slow

SMALL = Shape("small", 2, 24, 5, 6, 7, 1)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", ("planes", "channels_last", "crop"))
@pytest.mark.parametrize("parts", (1, 4))
def test_aggregate_passes_opcheck(parts, layout, dtype):
    problem = Problem.make(SMALL, dtype, layout)
    parameters = [t.float().requires_grad_() for t in (problem.weight, problem.centroids, problem.bias)]
    mask = problem.mask.flatten(1).float().requires_grad_()
    x = problem.x.detach().requires_grad_()
    weight, *others = parameters
    options = (parts, 1, True, parts == 1, parts == 1, False, True)
    given = (x, weight, None, *others, mask, *options)
    torch.library.opcheck(torch.ops.sfrs_ext.aggregate, (*given, False))
    torch.library.opcheck(torch.ops.sfrs_ext.aggregate, (*given, True))
    logits = torch.randn(*mask.shape, len(weight), requires_grad=True)
    torch.library.opcheck(torch.ops.sfrs_ext.aggregate, (x, None, logits, *others, mask, *options, True))


@pytest.mark.parametrize("layout", ("planes", "channels_last", "crop"))
@pytest.mark.parametrize("given", ("weight", "logits"))
@pytest.mark.parametrize("needs", (59, 1, 42))
def test_aggregate_backward_passes_opcheck(needs, given, layout):
    problem = Problem.make(SMALL, torch.float32, layout, given=given)
    tensors = [t if t is None else t.float() for t in problem.tensors()]
    tensors[-1] = tensors[-1].flatten(1)
    if given == "logits":
        tensors[2] = tensors[2].flatten(2).transpose(1, 2)
        needs = needs & ~2 | (needs & 2) << 1
    options = (1, 1, True, True, True, False)
    *saved, _ = torch.ops.sfrs_ext.aggregate(*tensors, *options, True, False)
    grad = torch.randn_like(saved[0])
    torch.library.opcheck(torch.ops.sfrs_ext.aggregate_backward, (grad, *tensors, *saved, *options, needs))


@pytest.mark.parametrize("lists", ((), (3,)))
def test_region_similarity_passes_opcheck(lists):
    query, quarters = (
        torch.randn(3, 4, 8, requires_grad=True),
        torch.randn(*lists, 5, 4, 4, 8, requires_grad=True),
    )
    for keep in (False, True):
        torch.library.opcheck(torch.ops.sfrs_ext.region_similarity, (query, quarters, False, True, keep))
    with torch.no_grad():
        similarity, dots, _ = torch.ops.sfrs_ext.region_similarity(query, quarters, False, True, False)
        arguments = (torch.randn_like(similarity), query.detach(), quarters.detach(), similarity, dots)
        torch.library.opcheck(torch.ops.sfrs_ext.region_similarity_backward, (*arguments, False, True, True))


def training_step(x, gallery, weight, centroids):
    query = sfrs_ext.netvlad(x, weight, centroids)
    quarters = sfrs_ext.region_vlad(gallery, weight, centroids)
    return sfrs_ext.region_similarity(query, quarters.unflatten(0, (x.shape[0], -1))).square().sum()


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_training_step_compiles_without_a_graph_break():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 16, 5, 6), torch.randn(6, 16, 5, 6), torch.randn(4, 16), torch.randn(4, 16)]
    eager, compiled = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    expected = training_step(*eager)
    expected.backward()
    out = torch.compile(training_step, fullgraph=True)(*compiled)
    out.backward()
    torch.testing.assert_close(out, expected)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_autocast_reads_features_in_the_autocast_dtype():
    problem = Problem.make(SMALL, torch.float32)
    weight = problem.weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sfrs_ext.netvlad(problem.x, weight, ghost_clusters=1)
        quarters = sfrs_ext.region_vlad(problem.x, weight, ghost_clusters=1)
    assert out.dtype == quarters.dtype == torch.bfloat16
    expected = sfrs_ext.netvlad(problem.x.bfloat16(), problem.weight, ghost_clusters=1)
    assert torch.equal(out, expected)
    out.float().square().sum().backward()
    assert weight.grad.dtype == torch.float32 and torch.isfinite(weight.grad).all()


def test_autocast_compares_in_the_wider_dtype():
    query, quarters = torch.randn(3, 4, 8).bfloat16(), torch.randn(5, 4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sfrs_ext.region_similarity(query, quarters)
    assert torch.equal(out, sfrs_ext.region_similarity(query.float(), quarters))


def test_meta_tensors_have_shapes():
    x, weight = torch.empty(2, 8, 4, 5, device="meta"), torch.empty(3, 8, device="meta")
    assert sfrs_ext.netvlad(x, weight).shape == (2, 24)
    assert sfrs_ext.region_similarity(weight.unflatten(1, (2, 4)), x.new_empty(6, 4, 2, 4)).shape == (3, 6, 9)


def test_no_grad_keeps_nothing_for_the_backward():
    x, weight = torch.randn(2, 8, 4, 4), torch.randn(3, 8, requires_grad=True)
    with torch.no_grad():
        assert not sfrs_ext.netvlad(x, weight).requires_grad
    options = (1, 0, True, True, True, False, False, False)
    _, *saved = torch.ops.sfrs_ext.aggregate(x, weight.detach(), None, None, None, None, *options)
    assert all(t.numel() == 0 for t in saved)


def test_second_derivatives_are_refused_not_wrong():
    x, weight = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(2, 4)
    (grad,) = torch.autograd.grad(sfrs_ext.netvlad(x, weight).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="sfrs_ext.reference"):
        grad.sum().backward()


FEATURES, WEIGHT, QUARTERS = torch.ones(1, 4, 3, 3), torch.eye(2, 4), torch.ones(5, 4, 2, 4)
FORWARD_MODE = {
    "netvlad in x": (FEATURES, "netvlad", lambda f, x: f(x, WEIGHT)),
    "netvlad in bias": (WEIGHT[0, :2], "netvlad", lambda f, b: f(FEATURES, WEIGHT, bias=b, intra_norm=False)),
    "region_vlad in weight": (WEIGHT, "region_vlad", lambda f, weight: f(FEATURES, weight)),
    "region_similarity in query": (WEIGHT[None], "region_similarity", lambda f, query: f(query, QUARTERS)),
    "region_similarity in quarters": (QUARTERS, "region_similarity", lambda f, q: f(WEIGHT[None], q)),
}


@pytest.mark.parametrize("case", FORWARD_MODE)
def test_forward_mode_is_refused_not_zero(case):
    from torch.autograd import forward_ad

    like, name, call = FORWARD_MODE[case]
    primal, tangent = torch.randn_like(like), torch.randn_like(like)
    refused = pytest.raises(NotImplementedError, match=f"{name}: forward-mode .*sfrs_ext.reference.{name}")

    def operator(t):
        return call(getattr(sfrs_ext, name), t)

    with refused:
        torch.func.jvp(operator, (primal,), (tangent,))
    with refused:
        torch.func.jacfwd(operator)(primal)
    with forward_ad.dual_level(), refused:
        operator(forward_ad.make_dual(primal, tangent))
    _, derivative = torch.func.jvp(lambda t: call(getattr(reference, name), t), (primal,), (tangent,))
    assert derivative.any()


def test_operators_on_constants_may_stand_inside_forward_mode():
    x = torch.randn(1, 4, 3, 3)
    expected = sfrs_ext.netvlad(x, WEIGHT)
    factor = torch.tensor(2.0)
    value, tangent = torch.func.jvp(lambda t: t * sfrs_ext.netvlad(x, WEIGHT), (factor,), (factor,))
    assert torch.equal(value, 2 * expected) and torch.equal(tangent, 2 * expected)


@pytest.mark.parametrize("module", (sfrs_ext.nn.NetVLAD, sfrs_ext.nn.RegionNetVLAD))
def test_modules_load_the_state_dict_of_the_reference_implementation(module):
    state = {"conv.weight": torch.randn(6, 16, 1, 1), "centroids": torch.randn(6, 16)}
    layer = module(num_clusters=6, dim=16)
    layer.load_state_dict(state)
    x = torch.randn(2, 16, 5, 6)
    expected = reference.netvlad(x, state["conv.weight"].flatten(1), state["centroids"])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("module", (sfrs_ext.nn.NetVLAD, sfrs_ext.nn.RegionNetVLAD))
def test_a_module_may_take_the_place_of_the_assignment(module):
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(16, 7, 1, bias=False), torch.nn.BatchNorm2d(7)
    assignment = torch.nn.Sequential(conv, norm)
    layer = module(num_clusters=6, dim=16, ghost_clusters=1, assignment=assignment)
    x = torch.randn(2, 16, 5, 6)
    options = dict(logits=assignment(x), centroids=layer.centroids, ghost_clusters=1)
    torch.testing.assert_close(layer(x), reference.netvlad(x, **options))
    if module is sfrs_ext.nn.RegionNetVLAD:
        torch.testing.assert_close(layer.quarters(x), reference.region_vlad(x, **options))
    assert not any(name.startswith("conv.") for name in layer.state_dict())
    layer(x).square()[:, ::3].sum().backward()
    assert conv.weight.grad.any() and norm.weight.grad.any()
    with pytest.raises(ValueError, match="init_from_clusters: the assignment is a module"):
        layer.init_from_clusters(layer.centroids, x.flatten(2)[0].T)


def test_clusters_become_the_weights_that_give_the_runner_up_one_percent():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(200, 16), dim=1)
    layer = sfrs_ext.nn.NetVLAD(5, 16, bias=True)
    alpha = layer.init_from_clusters(centers := features[:5].clone(), features)
    best = (features @ torch.nn.functional.normalize(centers).T).sort(descending=True).values
    assert torch.exp(-alpha * (best[:, 0] - best[:, 1]).mean()).item() == pytest.approx(0.01, rel=1e-4)
    assert torch.equal(layer.centroids, centers) and not layer.conv.bias.any()


def test_peak_memory_of_a_call_is_its_result():
    """No temporary of the size of x: measured as what torch's allocator hands out during the call."""
    from torch.profiler import ProfilerActivity, profile

    shape = SHAPES[0]
    problem = Problem.make(shape, torch.float32, bare=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.no_grad():
        sfrs_ext.netvlad(problem.x, problem.weight)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiler.key_averages())
    result = shape.clusters * shape.dim * 4
    assert result <= allocated <= 1.1 * result


@pytest.fixture
def tf32_switch():
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    yield matmul
    matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("switch", "on", "off"), (("allow_tf32", True, False), ("fp32_precision", "tf32", "ieee"))
)
def test_tf32_follows_the_switch_of_torch_and_only_for_float32_on_cuda(switch, on, off, tf32_switch):
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Tf32Arguments(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "sfrs_ext":
                names = [argument.name for argument in function._schema.arguments]
                seen.append(args[names.index("tf32")])
            return function(*args, **(kwargs or {}))

    for value in (on, off):
        setattr(tf32_switch, switch, value)
        for device, dtype in (("cuda", torch.float32), ("cuda", torch.bfloat16), ("cpu", torch.float32)):
            seen = []
            with FakeTensorMode(), Tf32Arguments():
                x, weight = (torch.empty(*n, device=device, dtype=dtype) for n in ((2, 8, 4, 5), (3, 8)))
                u, quarters = sfrs_ext.netvlad(x, weight, flatten=False), sfrs_ext.region_vlad(x, weight)
                sfrs_ext.region_similarity(u, quarters)
            assert seen == [value == on and device == "cuda" and dtype == torch.float32] * 3


def test_on_cuda_no_logits_are_saved_for_the_backward():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.empty(2, 8, 4, 5, device="cuda"), torch.empty(3, 8, device="cuda")
        options = (1, 0, True, True, True, False, True, False)
        _, *saved = torch.ops.sfrs_ext.aggregate(x, weight, None, None, None, None, *options)
    assert [tuple(t.shape) for t in saved] == [(0, 20, 3), (2, 20), (2, 4), (0,)]
