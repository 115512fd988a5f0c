import json
import mmap
import os

import torch

import sfrs_ext
from sfrs.runtime.host import host_facts, resident_bytes


def test_facts_are_json_and_name_versions_and_threads():
    facts = json.loads(json.dumps(host_facts()))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["sfrs_ext"] == sfrs_ext.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cores"] <= os.cpu_count()
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["cpu"]


def test_resident_memory_sees_what_is_allocated():
    before, size = resident_bytes(), 64 * 2**20
    with mmap.mmap(-1, size) as block:  # pages of its own, whatever the heap has kept
        block.write(bytes(size))
        assert resident_bytes() - before > 0.9 * size
    assert resident_bytes() < host_facts()["memory_bytes"]
