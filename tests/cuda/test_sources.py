"""What the sources of the kernels may not say, because a compiler drops code there without a word."""

import re
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "csrc").rglob("*.cu*"))
LOOP = r"(for|while|do|switch|SFRS_EACH|SFRS_UNROLL|SFRS_ROLLED|_Pragma)\b"
CONTROL = re.compile(rf"\s*(if\b|{LOOP})")


def after_parenthesis(text: str, begin: int) -> int:
    """Where the parenthesis that opens at or after ``begin`` is closed."""
    depth = 0
    for at in range(text.index("(", begin), len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at + 1
    raise ValueError("a parenthesis stays open")


def unbraced(text: str) -> list[int]:
    """Lines with an ``if constexpr`` whose branch is a loop or condition without braces, or such an else."""
    text = re.sub(r"//.*", "", text)
    branches = re.finditer(r"\bif constexpr\b", text)
    at = [m.start() for m in branches if CONTROL.match(text, after_parenthesis(text, m.end()))]
    at += [m.start() for m in re.finditer(rf"\belse\s+{LOOP}", text)]
    return [text.count("\n", 0, begin) + 1 for begin in sorted(at)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_branches_of_if_constexpr_that_are_loops_have_braces(path):
    # nvcc 13.0 drops what follows `if constexpr (false) for (...) {...}` up to an unroll pragma, stores too.
    assert unbraced(path.read_text()) == []


def test_the_pattern_is_found_where_it_is():
    assert unbraced("int a;\nif constexpr (B(1) > 2)  // why\n  for (;;) { f(); }\n") == [2]
    assert unbraced("if constexpr (C) {\n for (;;) g();\n}\n") == []
    assert unbraced("if constexpr (A)\n  SFRS_EACH (i, 4) f();") == [1]
    assert unbraced("if constexpr (A) {\n} else\n  for (;;) f();") == [2]
    assert unbraced("if constexpr (A) return 1;\nif constexpr (B)\n  f();\nelse\n  g();") == []
