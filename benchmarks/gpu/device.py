"""What the measurements ask of a device. ``Cuda`` alone knows CUDA; ``Host`` answers the same questions with
a clock, so that everything else runs and is tested on any machine. Its figures say nothing about a GPU.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], object]


def spread(microseconds: list[float]) -> dict:
    """Median, 20th and 80th percentile of repeated times."""
    times = sorted(microseconds)
    at = [times[min(int(q * len(times)), len(times) - 1)] for q in (0.2, 0.8)]
    return {"median": statistics.median(times), "low": at[0], "high": at[1], "count": len(times)}


def repetitions(first: float, seconds: float, fewest: int, most: int) -> int:
    """How often to repeat a call that took ``first`` microseconds, to spend ``seconds``."""
    return max(fewest, min(most, int(seconds * 1e6 / max(first, 1.0))))


class Cuda:
    """The current CUDA device."""

    type = "cuda"

    def __init__(self):
        if not torch.cuda.is_available():
            raise SystemExit("benchmarks: torch sees no CUDA device; --device cpu rehearses without one")
        properties = torch.cuda.get_device_properties(0)
        self.name = properties.name
        self.facts = {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
        size = max(4 * properties.L2_cache_size, 256 << 20)
        self._flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def forget(self) -> None:
        """Give back what torch's allocator keeps for later."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def times(self, call: Call, seconds: float, fewest: int = 5, most: int = 100) -> dict:
        """Microseconds of ``call`` between two events, each time with nothing of use in L2.

        The host runs ahead while the device overwrites L2, so that only what the host needs beyond
        that is in the figure.
        """

        def once() -> tuple[torch.cuda.Event, torch.cuda.Event]:
            self._flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            return begin, end

        def read(pair: tuple[torch.cuda.Event, torch.cuda.Event]) -> float:
            return pair[0].elapsed_time(pair[1]) * 1e3

        first = once()
        torch.cuda.synchronize()
        # Waiting between calls would let the clocks fall; many events at once are fine.
        pairs = [once() for _ in range(repetitions(read(first), seconds, fewest, most))]
        torch.cuda.synchronize()
        return spread([read(pair) for pair in pairs])

    def captured(self, call: Call) -> Call:
        """``call`` as a CUDA graph: what it takes the device, without the launches from Python."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def peak_bytes(self, call: Call) -> int:
        """What a call needs at its peak beyond its inputs, results included."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        self.synchronize()
        del results
        return torch.cuda.max_memory_allocated() - before


class Host:
    """The CPU in the place of a GPU, for rehearsals."""

    type = "cpu"

    def __init__(self):
        self.name = "rehearsal cpu"
        self.facts = {"gpu": "none: a rehearsal on the CPU, whose figures say nothing about a GPU"}

    def synchronize(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def times(self, call: Call, seconds: float, fewest: int = 5, most: int = 100) -> dict:
        def once() -> float:
            begin = time.perf_counter()
            call()
            return (time.perf_counter() - begin) * 1e6

        return spread([once() for _ in range(repetitions(once(), seconds, fewest, most))])

    def captured(self, call: Call) -> Call:
        return call

    def peak_bytes(self, call: Call) -> None:
        call()


DEVICES = {"cuda": Cuda, "cpu": Host}


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
