"""Mistakes in what the user gave, told without a traceback."""


class UserError(Exception):
    """The input is wrong and the message says what, where, and what was expected.

    The command line prints the message alone and leaves with exit code 2.
    """
