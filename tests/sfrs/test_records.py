"""JSON is read as declared, or one message names file, field and value."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest

from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, as_record, read_record


class More(TypedDict, total=False):
    note: str | None


class Inner(TypedDict):
    size: tuple[int, int] | int | None


@dataclass
class Point:
    x: float
    name: str = "here"


class Record(More):
    kind: Literal["a", "b"]
    count: Natural
    share: float
    recalls: dict[int, float]
    inner: Inner
    names: list[str]
    epochs: tuple[Annotated[int, 1], ...]
    rest: Any


GOOD = {
    "kind": "a",
    "count": 3,
    "share": 1,
    "recalls": {"1": 0.5, "10": 1.0},
    "inner": {"size": [3, 4], "further": 1},
    "names": ["\udcff"],
    "epochs": [1, 2],
    "rest": {"x": [None]},
}


def test_a_record_is_read_as_declared(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(GOOD))
    found = read_record(tmp_path / "r.json", Record)
    assert found == GOOD | {
        "recalls": {1: 0.5, 10: 1.0},
        "inner": {"size": (3, 4), "further": 1},
        "epochs": (1, 2),
    }
    assert type(found["share"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "c"}, r'r: kind is "c", expected one of a, b\.'),
        ({"kind": ["a"]}, r'r: kind is \["a"\], expected one of a, b\.'),
        ({"count": -1}, r"r: count is -1, expected a whole number of at least 0\."),
        ({"count": True}, r"r: count is true, expected a whole number"),
        ({"count": 2.5}, "r: count is 2.5, expected a whole number"),
        ({"count": 2**63}, "r: count is 9223372036854775808, expected a whole number"),
        ({"share": float("nan")}, "r: share is NaN, expected a number"),
        ({"share": 10**400}, r"r: share is 10{59}\.\.\., expected a number"),
        ({"recalls": {"one": 0.5}}, 'r: a key of recalls is "one", expected a whole number'),
        ({"recalls": {"1": None}}, "r: recalls.1 is null, expected a number"),
        ({"inner": {}}, "r: no size in inner"),
        ({"inner": {"size": [3]}}, r"r: inner.size is \[3\], expected a list of 2 or a whole number or null"),
        ({"inner": None}, "r: inner is null, expected an object"),
        ({"names": ["a", 1]}, r"r: names\[1\] is 1, expected a text"),
        ({"names": "ab"}, 'r: names is "ab", expected a list'),
        ({"epochs": [0]}, r"r: epochs\[0\] is 0, expected a whole number of at least 1"),
        ({"note": 1}, "r: note is 1, expected a text"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(UserError, match=message):
        as_record(GOOD | change, Record, "r")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000, "1" * 5000])
def test_what_is_no_record_at_all_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "r.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"r.json: (this is not JSON|the whole of it is)"):
        read_record(tmp_path / "r.json", Record)
    with pytest.raises(UserError, match=r"gone.json: this file cannot be read \(No such file"):
        read_record(tmp_path / "gone.json", Record)
    with pytest.raises(UserError, match="r: no kind, count, share, recalls, inner, names, epochs, rest"):
        as_record({}, Record, "r")


def test_a_dataclass_takes_its_defaults_and_nothing_else():
    found = as_record([{"x": 1}, {"x": 2.5, "name": "there"}], list[Point], "r")
    assert found == [Point(1.0), Point(2.5, "there")]
    for value, message in (
        ({"name": "a"}, r"r: no x in it\."),
        ({"x": 1, "y": 2}, r"r: y is unknown, expected x, name\."),
        ({"x": "1"}, r'r: x is "1", expected a number\.'),
        ([1], r"r: the whole of it is \[1\], expected an object\."),
    ):
        with pytest.raises(UserError, match=message):
            as_record(value, Point, "r")
