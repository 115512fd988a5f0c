"""Mistakes in what the user gave, and the words that messages count with."""


class UserError(Exception):
    """The input is wrong; the message says what, where, and what was expected.

    The command line prints it without a traceback and leaves with exit code 2. ``skip`` is the option, as
    ``skip_bad_images``, with which a command that has it leaves out what is wrong.
    """

    skip = ""


def counted(number: int, one: str, many: str = "") -> str:
    """Write ``1 image``, ``2,000 images`` or, with ``many``, ``2 queries``."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
