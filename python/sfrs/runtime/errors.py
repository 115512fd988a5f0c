"""Mistakes in what the user gave."""


class UserError(Exception):
    """The input is wrong; the message says what, where, and what was expected.

    The command line prints the message without a traceback and leaves with exit code 2.

    Attributes:
        skip: the option, as ``skip_bad_images``, with which a command that has it leaves out what is wrong.
    """

    skip = ""
