"""Read JSON as a declared type: every value is as declared, or one message names file, field and value.

A type is a ``TypedDict`` (further keys are kept), a dataclass (further keys are refused), ``list``,
``tuple``, ``dict``, ``Literal`` of texts, a union, None, ``bool``, ``int`` (of 64 bits), ``float`` (finite),
``str``, ``Any``, or ``Annotated`` with the least number allowed. Keys of ``dict[int, ...]`` are the numbers
that JSON made texts of.

Libraries that do this refuse the lone surrogates by which Python's file names hold any bytes.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import NotRequired, is_typeddict

from sfrs.runtime.errors import UserError

Natural = Annotated[int, 0]
Positive = Annotated[int, 1]

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    NoneType: "null",
}
LONGEST = 60  # characters of a wrong value that a message shows
LARGEST, DIGITS = 2**63, 19


class RecordError(UserError, ValueError):
    """A file holds something else than it should; the message names the file and the field."""


def parse_json(text: str | bytes, where: object) -> Any:
    """Parse JSON. Raises `RecordError`, which begins with ``where``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: this is not JSON ({error}).") from error


def read_record(path: Path, kind: Any) -> Any:
    """Read a JSON file as ``kind``. Raises `RecordError` if it cannot be read or holds something else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: this file cannot be read ({error.strerror}).") from error
    return as_record(parse_json(content, path), kind, path)


def as_record(value: Any, kind: Any, where: object) -> Any:
    """Return parsed JSON as ``kind``, lists and keys made tuples and numbers where that says so.

    Raises `RecordError` if a value is missing or of another type; the message begins with ``where``.
    """
    try:
        return _read(value, kind, "")
    except _Wrong as wrong:
        raise RecordError(f"{where}: {wrong}.") from None


class _Wrong(Exception):
    """A value is not as declared."""


def _refuse(value: Any, kind: Any, name: str) -> _Wrong:
    text = json.dumps(value)
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return _Wrong(f"{name or 'the whole of it'} is {shown}, expected {_words(kind)}")


def _words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_words(arguments[0])} of at least {arguments[1]}"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}"
    return WORDS[dict if is_typeddict(kind) or is_dataclass(kind) else origin or kind]


def _read(value: Any, kind: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return _read(value, arguments[0], name)
    if kind is Any or (origin is Literal and value in arguments):
        return value
    if origin in (Union, UnionType):
        return _read_one_of(value, kind, name)
    if is_typeddict(kind) and isinstance(value, dict):
        return _read_fields(value, get_type_hints(kind, include_extras=True), kind.__required_keys__, name)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(value, kind, name)
    if origin is dict and isinstance(value, dict):
        items = [(_key(key, arguments[0], name), key, item) for key, item in value.items()]
        return {number: _read(item, arguments[1], _inner(name, key)) for number, key, item in items}
    if origin in (list, tuple) and isinstance(value, list):
        return _read_list(value, kind, name)
    if origin is Annotated and (found := _read(value, arguments[0], name)) >= arguments[1]:
        return found
    if isinstance(kind, type) and _is_plain(value, kind):
        return kind(value) if kind is float else value
    raise _refuse(value, kind, name)


def _read_one_of(value: Any, kind: Any, name: str) -> Any:
    kinds = [k for k in get_args(kind) if k is not NoneType or value is None]
    for alternative in kinds:
        try:
            return _read(value, alternative, name)
        except _Wrong:
            if len(kinds) == 1:  # its message says what within the value is wrong
                raise
    raise _refuse(value, kind, name)


def _read_fields(value: dict, kinds: dict[str, Any], required: Iterable[str], name: str) -> dict:
    if missing := [key for key in kinds if key in required and key not in value]:
        raise _Wrong(f"no {', '.join(missing)} in {name or 'it'}")
    return {
        key: _read(item, kinds[key], _inner(name, key)) if key in kinds else item
        for key, item in value.items()
    }


def _read_dataclass(value: dict, kind: Any, name: str) -> Any:
    declared = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    if unknown := [key for key in value if key not in declared]:
        raise _Wrong(f"{_inner(name, unknown[0])} is unknown, expected {', '.join(declared)}")
    required = [key for key, needed in declared.items() if needed]
    return kind(**_read_fields(value, get_type_hints(kind, include_extras=True), required, name))


def _read_list(value: list, kind: Any, name: str) -> Any:
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is list or kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _refuse(value, kind, name)
    return origin(_read(item, kinds[i], f"{name}[{i}]") for i, item in enumerate(value))


def _is_plain(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind not in (int, float):
        return type(value) is kind
    whole = isinstance(value, int) and abs(value) < LARGEST
    return whole or (kind is float and isinstance(value, float) and math.isfinite(value))


def _key(key: str, kind: type, name: str) -> Any:
    if kind is int and not (key.isascii() and key.isdigit() and len(key) < DIGITS):
        raise _Wrong(f"a key of {name or 'it'} is {json.dumps(key)}, expected a whole number")
    return kind(key)


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
