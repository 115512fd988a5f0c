"""Damage a file at random: its bytes or, to get past the first check, by its format a value in it."""

import csv
import io
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

WRONG: tuple = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        7,
        2**31,
        2**62,
        2**63,
        10**30,
        0.5,
        -1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "0", "x" * 300, "\0", "\udcff", "../../x", "[b]", [], {}, [[]], [1, 2], [0, -1], {"": 0}),
    *([2**40] * 3, {"x": [None]}, "999999999999"),
)
"""Values that stand where others are expected."""
NUMBERS = (
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\0\0\0\0\0\1\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\x80\x7f",
)
"""Whole and real numbers that are huge, negative or none, in their bytes."""
MOST_BITS, LONGEST = 4, 64


def damage(path: Path, random: Random) -> str:
    """Damage a file where it lies; return in words how."""
    by_format = BY_SUFFIX.get(path.suffix)
    if by_format is not None and random.random() < 0.6:
        return by_format(path, random)
    data = bytearray(path.read_bytes())
    way = random.choice(WAYS)
    path.write_bytes(way(data, random))
    return f"{way.__name__} of {len(data)} bytes"


def flipped(data: bytearray, random: Random) -> bytes:
    for _ in range(random.randint(1, MOST_BITS)):
        if data:
            data[_place(data, random)] ^= 1 << random.randrange(8)
    return data


def truncated(data: bytearray, random: Random) -> bytes:
    return data[: _place(data, random)]


def numbered(data: bytearray, random: Random) -> bytes:
    number, at = random.choice(NUMBERS), _place(data, random)
    return data[:at] + number + data[at + len(number) :]


def overwritten(data: bytearray, random: Random) -> bytes:
    at, length = _place(data, random), random.randint(1, LONGEST)
    return data[:at] + random.choice((bytes(length), random.randbytes(length))) + data[at + length :]


def shifted(data: bytearray, random: Random) -> bytes:
    at, length = _place(data, random), random.randint(1, LONGEST)
    if random.random() < 0.5:
        return data[:at] + data[at + length :]
    return data[:at] + data[at : at + length] + data[at:]


def emptied(data: bytearray, random: Random) -> bytes:
    return b"" if random.random() < 0.2 else random.randbytes(random.choice((1, 100, 5000)))


WAYS = (flipped, flipped, flipped, truncated, numbered, overwritten, shifted, emptied)


def _place(data: bytearray, random: Random) -> int:
    """Half of all damage is in the first kilobyte, where a format has its sizes."""
    most = max(len(data), 1)
    return random.randrange(min(most, 1024) if random.random() < 0.5 else most)


def wrong_json(value: Any, random: Random) -> Any:
    """Replace a value somewhere within JSON, or leave it out."""
    places: list[tuple[Any, Any]] = [(None, None)]
    _walk(value, places)
    parent, key = random.choice(places[1:] or places)
    if parent is None:
        return random.choice(WRONG)
    if random.random() < 0.2:
        del parent[key]
    elif isinstance(parent, list) and random.random() < 0.2:
        parent += parent[key:]
    else:
        parent[key] = random.choice(WRONG)
    return value


def _walk(value: Any, places: list) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        places.append((value, key))
        _walk(item, places)


def damage_json(path: Path, random: Random) -> str:
    path.write_text(json.dumps(wrong_json(json.loads(path.read_text()), random)))
    return "a wrong value"


def damage_lines(path: Path, random: Random) -> str:
    lines = path.read_text().splitlines()
    at = random.randrange(len(lines))
    lines[at] = json.dumps(wrong_json(json.loads(lines[at]), random))
    path.write_text("\n".join(lines) + "\n")
    return f"a wrong value in line {at + 1}"


def damage_csv(path: Path, random: Random) -> str:
    rows = list(csv.reader(io.StringIO(path.read_text())))
    row = random.choice(rows)
    at = random.randrange(len(row))
    row[at] = str(random.choice((*WRONG, '"', ",", "-", "1e400", "9" * 400)))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue(), errors="surrogateescape")
    return "a wrong cell"


def damage_table(path: Path, random: Random) -> str:
    database = sqlite3.connect(path)
    try:
        with database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            table = random.choice(tables)[0]
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            rows = database.execute(f"SELECT * FROM {table}").fetchall()
            row, column = random.choice(rows), random.choice(columns)
            value: Any = random.choice((*NUMBERS, *(v for v in WRONG if not isinstance(v, list | dict))))
            if table == "settings":
                column, value = "value", json.dumps(wrong_json(json.loads(row[1]), random))
            database.execute(f"UPDATE {table} SET {column} = ? WHERE {columns[0]} = ?", (value, row[0]))
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        return f"{column} of {table} could not be changed ({error})"  # SQLite refuses some values itself
    finally:
        database.close()
    return f"a wrong {column} in {table}: {value!r:.60} in the row {row[0]!r}"


def damage_tensors(path: Path, random: Random) -> str:
    """Put a wrong value into the header of a safetensors file, or into the JSON within its metadata."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    texts = header.get("__metadata__") or {}
    if texts and random.random() < 0.7:
        name = random.choice(list(texts))
        texts[name] = json.dumps(wrong_json(json.loads(texts[name]), random))
    else:
        header = wrong_json(header, random)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return "a wrong value in the header"


BY_SUFFIX: dict[str, Callable[[Path, Random], str]] = {
    ".json": damage_json,
    ".jsonl": damage_lines,
    ".csv": damage_csv,
    ".sqlite": damage_table,
    ".safetensors": damage_tensors,
}
