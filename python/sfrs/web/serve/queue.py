"""The line before the network: one photo at a time, a few waiting, the rest sent away at once."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from sfrs.web.serve.refusal import Refusal

Result = TypeVar("Result")


class LocatingQueue:
    """Runs jobs one after the other on one thread of its own, so that the event loop never waits.

    A request takes a place once its body has arrived, so that slow bodies keep nobody waiting. The number of
    bodies, read and being read, is bounded, and so is their memory.

    Attributes:
        taken: places taken, by the request being located and by those that wait.
        reading: requests whose body is being read.
    """

    def __init__(self, waiting: int):
        self.places = waiting + 1
        self.bodies = self.places + max(2, self.places // 2)
        self.taken = self.reading = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sfrs-locate")
        self._seconds = 0.5

    @property
    def full(self) -> bool:
        return self.taken >= self.places or self.taken + self.reading >= self.bodies

    @contextmanager
    def read(self) -> Iterator[None]:
        """Count a body as being read."""
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place; only to be called on the event loop.

        Raises:
            Refusal: 503, all are taken; Retry-After says when to come again.
        """
        if self.taken >= self.places:
            raise self.refusal()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def refusal(self) -> Refusal:
        """What is answered while it is full."""
        wait = min(60, math.ceil(self.taken * self._seconds))
        message = (
            f"{self.taken + self.reading} photos are being located already; please try again in {wait} s."
        )
        return Refusal(503, message, Retry_After=str(wait), Connection="close")

    async def run(self, job: Callable[..., Result], *arguments: object) -> Result:
        """Wait for this job's turn and its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, job, *arguments)

    def _timed(self, job: Callable[..., Result], *arguments: object) -> Result:
        started = time.perf_counter()
        try:
            return job(*arguments)
        finally:
            self._seconds += 0.2 * (time.perf_counter() - started - self._seconds)

    def close(self) -> None:
        """Forget the jobs that wait, and wait for the one that runs."""
        self._thread.shutdown(cancel_futures=True)
