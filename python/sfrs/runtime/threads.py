"""Threads for work that runs in parallel: loading and rendering of photographs."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def single_threads(count: int) -> ThreadPoolExecutor:
    """Return a pool of ``count`` threads, in each of which torch computes on that thread alone.

    Otherwise a thread that calls torch gets a team of OpenMP threads of its own, and with more threads in
    teams than there are cores every parallel computation of the process waits for its team to wake.
    """
    computing, begun = torch.get_num_threads(), Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # torch takes a thread's number over when it is first asked for
        begun.wait()

    pool = ThreadPoolExecutor(count, initializer=begin)
    try:
        for _ in range(count):  # a thread begins with its first task
            pool.submit(int)
    except BaseException:
        begun.abort()  # those that have begun would wait for the one that could not
        raise
    begun.wait()
    torch.set_num_threads(computing)  # threads that come later are given this number
    return pool
