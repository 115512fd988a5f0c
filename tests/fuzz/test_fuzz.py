"""Calls that failed once are right since, and the fuzzer notices what is wrong."""

from pathlib import Path

import children
import pytest
import torch
from cases import OPERATORS, make
from check import check

import sfrs_ext

pytestmark = pytest.mark.slow

LINES = Path(__file__).with_name("seeds.txt").read_text("utf-8").splitlines()
SEEDS = [int(line.split()[0]) for line in LINES if line and not line.startswith("#")]


def faults(case) -> list[str]:
    return [fault for fault in check(case) if fault]


@pytest.mark.parametrize("seed", SEEDS)
def test_mended_calls_stay_right(seed):
    assert not faults(make(seed))


def cases_of(operator: str) -> list:
    """The first few."""
    return [case for case in map(make, range(40)) if case.operator == operator][:4]


@pytest.mark.parametrize("operator", sorted(set(OPERATORS)))
def test_a_wrong_value_is_noticed(operator, monkeypatch):
    right = getattr(sfrs_ext, operator)

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        return result * torch.linspace(1, 1.5, result.shape[-1], dtype=result.dtype)

    cases = cases_of(operator)
    assert not any(map(faults, cases))
    monkeypatch.setattr(sfrs_ext, operator, wrong)
    assert any(map(faults, cases))


@pytest.mark.parametrize("operator", sorted(set(OPERATORS)))
def test_an_error_that_names_no_argument_is_noticed(operator, monkeypatch):
    def wrong(*arguments, **options):
        raise ValueError(f"{operator}: an expected index is off")

    cases = cases_of(operator)
    monkeypatch.setattr(sfrs_ext, operator, wrong)
    for case in cases:
        assert all(check(case))


@pytest.mark.parametrize(
    "does, patience, what",
    (
        ("kill -SEGV $$", 60, "ended with -11: broken"),
        ("sleep 60", 5, "did not return within 5 seconds: broken"),
    ),
)
def test_a_crash_and_a_hang_are_noticed(does, patience, what, monkeypatch, tmp_path):
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\necho AT 8 11\necho broken\nexec sh -c '{does}'\n")
    child.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(child))
    monkeypatch.setattr(children, "PATIENCE", patience)
    seed, calls, ((failed, fault),) = children.run_child(["fuzz.py"], seed=5, step=3, seconds=0)
    assert (seed, calls, failed) == (11, 11, 8) and what in fault
