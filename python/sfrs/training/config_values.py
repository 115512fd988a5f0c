"""Values of configuration fields: brought to their declared type, and held to their range."""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from sfrs.runtime.errors import UserError

MOST = 10**9  # no number that is given is larger, so that a wrong one takes no terabytes


class ConfigError(UserError, ValueError):
    """A configuration field has a value it cannot have; the message names the field."""


def coerced(name: str, value: Any, hint: Any) -> Any:
    """Return a value, which may be a text, in the type ``hint``. Raises `ConfigError` if it is none."""
    if get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{name} is {value!r}, expected a list of {get_args(hint)[0].__name__}")
        return tuple(coerced(name, item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(get_args(hint))}")
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        if "\0" in value:
            raise ConfigError(f"{name} is {value!r}, expected text without null bytes")
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and (isinstance(value, str) or number == value):
            return number
    raise ConfigError(f"{name} is {value!r}, expected {hint.__name__}")


def check_range(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a number (or one of a list) that is no number, too small or too large."""
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, str | bool) for number in numbers):
        return
    least, most, positive = limits["least"], limits["most"], limits["positive"]
    if not all(least <= number <= most and (number or not positive) for number in numbers):
        expected = "a positive number" if positive else f"at least {least}" if least else "0 or more"
        expected += "" if all(number <= most for number in numbers) else f", at most {most}"
        each = "for each " if isinstance(value, tuple) else ""
        raise ConfigError(f"{name} is {value}, expected {each}{expected}")
