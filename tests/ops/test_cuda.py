"""What only a GPU can show: streams, graphs, devices, waiting, TF32, large tensors. ``pytest -m cuda``."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import DTYPES, SHAPES, Problem, Shape
from test_aggregation import OPERATORS, check
from test_region_similarity import check as check_similarity
from test_region_similarity import inputs as similarity_inputs
from test_region_similarity import results as similarity_results
from test_torch_integration import training_step
from tolerance import largest_error

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.cuda
CUDA = "cuda"
SPLIT = Shape("few images, many positions", 2, 64, 61, 47, 20, 1)


def step_inputs(device: str = CUDA, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = ((2, 32, 9, 11), (6, 32, 9, 11), (5, 32), (5, 32))
    return [torch.randn(*size, generator=g).to(device, dtype).requires_grad_() for size in sizes]


def step_gradients(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(training_step(*inputs), inputs))


def busy(milliseconds: int) -> None:
    """Keeps the current stream busy for about so long."""
    torch.cuda._sleep(milliseconds * 2_000_000)


@pytest.fixture
def float32_products():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (SHAPES[0], SHAPES[1], SPLIT), ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_two_runs_give_the_same_bits(operator, shape, dtype):
    problem = Problem.make(shape, dtype, device=CUDA)
    first, second = (problem.results(getattr(sfrs_ext, operator)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_two_runs_of_region_similarity_give_the_same_bits(all_pairs):
    tensors = similarity_inputs((7, 19, 5, 33), all_pairs, torch.float32, CUDA)
    first, second = (similarity_results(sfrs_ext.region_similarity, *tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    (
        SPLIT,
        Shape("most clusters", 2, 48, 9, 7, 256),
        Shape("most clusters with ghosts", 1, 520, 6, 5, 250, 6),
        Shape("longest features", 1, 2048, 6, 9, 16),
        Shape("most clusters, longest features", 1, 2048, 5, 5, 256),
        Shape("tokens of a transformer", 4, 768, 1, 529, 64),
        Shape("more images than multiprocessors", 300, 16, 3, 5, 4),
    ),
    ids=str,
)
@pytest.mark.parametrize("layout", ("planes", "channels_last"))
@pytest.mark.parametrize("operator", OPERATORS)
def test_agrees_with_the_reference_at_the_limits(operator, layout, shape, dtype):
    check(Problem.make(shape, dtype, layout, device=CUDA), operator)


def test_too_many_clusters_are_refused_by_number():
    x, weight = torch.randn(1, 16, 4, 4, device=CUDA), torch.randn(1000, 16, device=CUDA)
    with pytest.raises(RuntimeError, match="1000"):
        sfrs_ext.netvlad(x, weight)


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
@pytest.mark.parametrize("shape", ((3, 40, 64, 512), (140, 50, 3, 72), (2, 5, 256, 24)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_region_similarity_agrees_on_more_shapes(dtype, shape, all_pairs):
    check_similarity(shape, all_pairs, dtype, CUDA)


@pytest.mark.parametrize("operator", OPERATORS)
def test_float32_products_keep_their_digits_unless_the_switch_of_torch_allows_tf32(
    operator, float32_products
):
    problem = Problem.make(SHAPES[0], torch.float32, device=CUDA)
    function = getattr(sfrs_ext, operator)
    exact = problem.to(torch.float64).results(getattr(reference, operator))
    errors = {}
    for precision in ("highest", "high"):
        float32_products(precision)
        found = problem.results(function)
        errors[precision] = {
            name: largest_error(found[name], exact[name]) / exact[name].abs().max().item() for name in exact
        }
    for name in ("result", "dx", "dweight"):
        assert errors["highest"][name] < 2e-5, errors
        assert 2 * errors["highest"][name] < errors["high"][name] < 0.1, errors


def test_nothing_waits_for_the_device():
    inputs = step_inputs()
    step_gradients(inputs)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        busy(300)
        gradients = step_gradients(inputs)
        done.record()
        assert not done.query(), "the calls returned after the device was done"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done.synchronize()
    assert all(torch.isfinite(g).all() for g in gradients)


def test_work_goes_to_the_current_stream():
    inputs = step_inputs()
    expected = step_gradients(inputs)
    late = [torch.full_like(t, float("nan")).requires_grad_() for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy(100)
        with torch.no_grad():
            for to, from_ in zip(late, inputs, strict=True):
                to.copy_(from_)
        gradients = step_gradients(late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_scratch_is_not_shared_between_streams():
    problems = [Problem.make(SPLIT, torch.float32, seed=seed, device=CUDA) for seed in range(4)]
    expected = [p.results(sfrs_ext.netvlad) for p in problems]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in problems], []
    for _ in range(5):
        for stream, problem in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                found.append(problem.results(sfrs_ext.netvlad))
    torch.cuda.synchronize()
    for i, results in enumerate(found):
        assert all(torch.equal(results[n], expected[i % 4][n]) for n in results)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_captured_step_computes_with_new_inputs(dtype):
    inputs = step_inputs(dtype=dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step_gradients(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step_gradients(inputs)
    with torch.no_grad():
        for t in inputs:
            t.copy_(torch.randn_like(t))
    expected = step_gradients(inputs)
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_shapes_do_not_take_shared_memory_from_each_other():
    large, small = (Problem.make(shape, torch.bfloat16, bare=True, device=CUDA) for shape in SHAPES[:2])
    expected = [sfrs_ext.netvlad(p.x, p.weight, ghost_clusters=p.ghosts) for p in (large, small)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sfrs_ext.netvlad(large.x, large.weight)

    def many(problem: Problem) -> list[torch.Tensor]:
        return [sfrs_ext.netvlad(problem.x, problem.weight, ghost_clusters=problem.ghosts) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(many, (large, small, large, small)))
    graph.replay()
    assert torch.equal(captured, expected[0])
    for i, results in enumerate(found):
        assert all(torch.equal(result, expected[i % 2]) for result in results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device only")
def test_tensors_of_another_device_are_computed_there():
    expected = step_gradients(step_inputs("cuda:0"))
    with torch.cuda.device(0):
        gradients = step_gradients(step_inputs("cuda:1"))
        assert torch.cuda.current_device() == 0
    for a, b in zip(gradients, expected, strict=True):
        assert a.device.index == 1
        torch.testing.assert_close(a.cpu(), b.cpu())


def test_arguments_on_different_devices_are_refused():
    x, weight = torch.randn(1, 8, 3, 3, device=CUDA), torch.randn(4, 8)
    with pytest.raises(ValueError, match="netvlad: weight is on cpu, but x is on cuda:0"):
        sfrs_ext.netvlad(x, weight)
    options = (1, 0, True, True, True, False, False, False)
    with pytest.raises(RuntimeError, match="weight is on another device"):
        torch.ops.sfrs_ext.aggregate(x, weight, None, None, None, None, *options)


@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast_reads_features_in_the_autocast_dtype(operator):
    problem = Problem.make(SHAPES[1], torch.float32, bare=True, device=CUDA)
    function, weight = getattr(sfrs_ext, operator), problem.weight.clone().requires_grad_()
    with torch.autocast(CUDA, dtype=torch.bfloat16):
        out = function(problem.x, weight, ghost_clusters=2)
    assert torch.equal(out, function(problem.x.bfloat16(), problem.weight, ghost_clusters=2))
    out.float().square().sum().backward()
    assert weight.grad.dtype == torch.float32 and torch.isfinite(weight.grad).all()


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_training_step_compiles_without_a_graph_break():
    inputs = step_inputs()
    expected = step_gradients(inputs)
    compiled = torch.compile(training_step, fullgraph=True)
    for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_operators_pass_opcheck():
    pytest.importorskip("expecttest", reason="torch.library.opcheck needs expecttest")
    problem = Problem.make(Shape("small", 2, 24, 5, 6, 7, 1), torch.float32, device=CUDA)
    tensors = [t if t is None else t.requires_grad_() for t in problem.tensors()]
    tensors[-1] = problem.mask.detach().flatten(1).requires_grad_()
    options = (1, 1, True, True, True, False, True, True)
    torch.library.opcheck(torch.ops.sfrs_ext.aggregate, (*tensors, *options))
    query, quarters = similarity_inputs((3, 5, 4, 8), False, torch.float32, CUDA)
    arguments = (query.requires_grad_(), quarters.requires_grad_(), False, True, True)
    torch.library.opcheck(torch.ops.sfrs_ext.region_similarity, arguments)


def test_memory_at_the_peak_is_that_of_the_result():
    shape = Shape("as many images as keep all multiprocessors busy", 512, 512, 8, 8, 64)
    problem = Problem.make(shape, torch.bfloat16, bare=True, device=CUDA)
    sfrs_ext.netvlad(problem.x, problem.weight)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        result = sfrs_ext.netvlad(problem.x, problem.weight)
    peak = torch.cuda.max_memory_allocated() - before
    size = result.numel() * result.element_size()
    assert size <= peak <= 1.1 * size


def needs(gibibytes: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of free GPU memory, there are {free >> 30}")


@pytest.fixture
def give_back():
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_features_beyond_two_billion_elements(layout, give_back):
    needs(24)
    batch, dim, clusters = 1800, 1024, 8
    x = torch.empty(batch, dim, 30, 40, dtype=torch.bfloat16, device=CUDA, memory_format=layout)
    assert x.numel() > 2**31
    x.normal_()
    weight = torch.randn(clusters, dim, device=CUDA)
    x.requires_grad_()
    out = sfrs_ext.netvlad(x, weight)
    grad = torch.randn_like(out)
    (dx,) = torch.autograd.grad(out, x, grad)
    last = x[-2:].detach().float().requires_grad_()
    expected = reference.netvlad(last, weight)
    (expected_dx,) = torch.autograd.grad(expected, last, grad[-2:].float())
    torch.testing.assert_close(out[-2:].float(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
    scale = expected_dx.abs().max().item()
    torch.testing.assert_close(dx[-2:].float(), expected_dx, rtol=0.05, atol=0.02 * scale)


def test_images_that_lie_two_billion_elements_apart(give_back):
    needs(12)
    stride = 2**31 + 64
    memory = torch.empty(stride + 32 * 30 * 40, dtype=torch.bfloat16, device=CUDA)
    x = memory.as_strided((2, 32, 30, 40), (stride, 1200, 40, 1))
    x.copy_(torch.randn(2, 32, 30, 40))
    weight = torch.randn(8, 32, device=CUDA)
    assert torch.equal(sfrs_ext.netvlad(x, weight), sfrs_ext.netvlad(x.contiguous(), weight))


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_galleries_beyond_two_billion_elements(all_pairs, give_back):
    needs(24)
    gallery, clusters, dim = 16500, 64, 512
    quarters = torch.empty(gallery, 4, clusters, dim, dtype=torch.bfloat16, device=CUDA).normal_()
    assert quarters.numel() > 2**31
    query = torch.nn.functional.normalize(torch.randn(2, clusters * dim, device=CUDA)).bfloat16()
    query, shaped = (query, quarters) if all_pairs else (query[:1], quarters.unsqueeze(0))
    shaped.requires_grad_()
    out = sfrs_ext.region_similarity(query, shaped)
    grad = torch.randn_like(out)
    (dquarters,) = torch.autograd.grad(out, shaped, grad)
    last = quarters[-2:].detach().float().requires_grad_()
    expected = reference.region_similarity(query.float(), last)
    (expected_gradient,) = torch.autograd.grad(expected, last, grad[:, -2:])
    torch.testing.assert_close(out[:, -2:], expected, rtol=1e-2, atol=1e-4)
    found = dquarters.view(quarters.shape)[-2:].float()
    scale = expected_gradient.abs().max().item()
    torch.testing.assert_close(found, expected_gradient, rtol=0.05, atol=0.02 * scale)
