"""Which tests are slow: ``pytest -m "not slow"`` leaves them out and ends in a minute on two cores."""

import pytest

SLOW = {
    "benchmarks": "describing drop_in gpu_benchmarks operator_benchmarks training_benchmark triton_peer",
    "cuda": "clocks emulator gpu_script launch library",
    "fuzz": "fuzz",
    "ops": "accelerate builds call_forms cancelled_quarters compile conv3x3 given_logits left_alone looking "
    "out_of_memory region_similarity torch_integration torch_tools",
    "sfrs": "autocast city demo disk_cache distributed docs export export_compiled faults hubconf "
    "index_interruption reference_procedure report_page resume serve_command serve_page",
    "sources": "installation source_folder",
}
"""Modules that take more than about two seconds of processor time, by folder, without test_ and .py."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {(folder, f"test_{name}") for folder, names in SLOW.items() for name in names.split()}
    for item in items:
        if (item.path.parent.name, item.path.stem) in slow:
            item.add_marker(pytest.mark.slow)
