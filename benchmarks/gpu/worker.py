"""The measuring process: takes work from its standard input, reports every step on a pipe.

It is a process of its own because a kernel that reads foreign memory, or never ends, leaves no CUDA context
to go on in. Started by ``benchmarks.gpu``, which starts another one then.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .cases import EAGER, TINY, Case, Contender, Sizes, registry
from .device import DEVICES, Cuda, Host, bytes_of

GRAPH_BELOW = 5000.0  # microseconds; longer calls hide their launches
SANE = 0.1  # an error of eager torch above this is no measure for others
SECONDS = {"device": 0.1, "python": 0.03}  # to spend on repetitions


def prepare(case: Case, device: Cuda | Host) -> dict[str, Tensor]:
    inputs = case.inputs(torch.Generator(device=device.type).manual_seed(0))
    return {n: t.requires_grad_(case.backward and n not in case.fixed) for n, t in inputs.items()}


def compute(case: Case, function: Callable, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The result, then the gradients."""
    arguments = {n: t for n, t in inputs.items() if n != "grad"}
    if not case.backward:
        with torch.no_grad():
            return [function(*arguments.values())]
    out = function(*arguments.values())
    wanted = [t for t in arguments.values() if t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, inputs["grad"].to(out.dtype))]


def errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Largest error of every result relative to its largest value; NaN stays NaN."""
    return [
        ((r.double() - e).abs().max() / e.abs().max()).item() for r, e in zip(results, exact, strict=True)
    ]


class Bench:
    """One case's inputs, exact results and what eager torch makes of them, then one contender at a time."""

    def __init__(self, case: Case, device: Cuda | Host, seconds: float):
        self.case, self.device, self.seconds = case, device, seconds
        self.inputs = prepare(case, device)
        double = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in self.inputs.items()}
        self.exact = compute(case, case.oracle, double)
        del double
        eager = errors(compute(case, case.contenders[EAGER].function, self.inputs), self.exact)
        self.allowed = [max(case.tolerance, 2 * min(e, SANE)) for e in eager]

    def measure(self, name: str) -> dict:
        contender: Contender = self.case.contenders[name]
        function, begin = contender.function, time.perf_counter()
        if contender.mode:
            torch._dynamo.reset()  # or the ninth shape of a function would silently run uncompiled
            function = torch.compile(function, mode=contender.mode, dynamic=False)

        def call() -> list[Tensor]:
            return compute(self.case, function, self.inputs)

        results = call()
        self.device.synchronize()
        record = {"first_call_seconds": time.perf_counter() - begin}
        record["errors"] = errors(self.in_our_order(name, results), self.exact)
        if not all(e <= allowed for e, allowed in zip(record["errors"], self.allowed, strict=True)):
            return record | {"status": "refused", "allowed": self.allowed}
        record["result_bytes"] = bytes_of(results)
        del results
        record["peak_bytes"] = self.device.peak_bytes(call)
        record["python"] = self.device.times(call, SECONDS["python"] * self.seconds)
        record["device"], record["method"] = record["python"], "events"
        if record["python"]["median"] < GRAPH_BELOW:
            try:
                replay = self.device.captured(call)
            except RuntimeError as error:
                record["not_captured"] = first_line(error)
            else:
                record["device"] = self.device.times(replay, SECONDS["device"] * self.seconds)
                record["method"] = "graph"
        return record | {"status": "measured"}

    def in_our_order(self, name: str, results: list[Tensor]) -> list[Tensor]:
        if "cluster-major" not in name:
            return results
        clusters = self.case.shapes["K"]
        return [r.unflatten(1, (clusters, -1)).mT.flatten(1) for r in results]


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def copy_rate(device: Cuda | Host, seconds: float, elements: int) -> float:
    source = torch.randn(elements, device=device.type)  # zeros would be copied faster
    target = torch.empty_like(source)
    median = device.times(lambda: target.copy_(source), seconds, 5, 20)["median"]
    return 2 * bytes_of([source]) / (median * 1e-6)


def product_rate(device: Cuda | Host, seconds: float, side: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device.type).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    median = device.times(lambda: torch.matmul(a, b, out=out), seconds, 5, 20)["median"]
    return 2 * side**3 / (median * 1e-6)


def ceilings(device: Cuda | Host, seconds: float, large: bool) -> dict:
    """What this device reaches at best: a copy in bytes read and written, products in FLOP, per second."""
    elements, side = (1 << 30, 8192) if large else (1 << 16, 64)
    found = {"copy_bytes_per_second": copy_rate(device, seconds, elements)}
    for name, dtype, switch in (
        ("bf16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(switch)
        found[f"{name}_flops_per_second"] = product_rate(device, seconds, side, dtype)
    torch.set_float32_matmul_precision("highest")
    one = torch.zeros(1, device=device.type)
    empty = device.captured(lambda: one.add_(1))
    found["smallest_graph_microseconds"] = device.times(empty, seconds)["median"]
    device.forget()
    return found


def work(say: Callable[[dict], None], device: Cuda | Host, request: dict) -> None:
    cases = registry(TINY if request["tiny"] else Sizes())
    seconds = request["repeat"]
    if request["ceilings"]:
        say({"begin": ["ceilings", ""]})
        say({"ceilings": ceilings(device, 0.2 * seconds, not request["tiny"]), "facts": device.facts})
    bench = None
    for case_name, contender in request["items"]:
        if time.time() > request["deadline"]:
            break
        say({"begin": [case_name, contender]})
        case = cases[case_name]
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        try:
            if bench is None or bench.case is not case:
                bench = None
                gc.collect()
                device.forget()
                bench = Bench(case, device, seconds)
            record = bench.measure(contender)
        except torch.OutOfMemoryError as error:
            record = {"status": "out of memory", "error": first_line(error)}
        except Exception as error:  # of whatever kind: it is this contender's result
            record = {"status": "failed", "error": first_line(error)}
        say({"done": [case_name, contender], "record": record})
        device.forget()  # raises where the context is lost: the next process goes on


def main() -> None:
    request = json.loads(sys.stdin.readline())
    with os.fdopen(request["pipe"], "w") as pipe:

        def say(message: dict) -> None:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

        work(say, DEVICES[request["device"]](), request)


if __name__ == "__main__":
    main()
