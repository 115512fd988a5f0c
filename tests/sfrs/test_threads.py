"""Threads that work side by side leave the others' teams alone."""

from concurrent.futures import ThreadPoolExecutor

import torch

from sfrs.runtime.threads import single_threads


def test_each_thread_computes_alone_and_the_others_keep_their_number():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with single_threads(2) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
