"""``python -m sfrs`` is the ``sfrs`` command."""

from sfrs.cli import app

app()
