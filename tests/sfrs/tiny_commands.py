"""Run ``sfrs`` commands with the tiny backbone known: ``tiny_commands.py FILE``.

FILE holds a JSON list of argument lists, run one after the other until one fails. An argument may be an
object, ``{"0": text, "1": other}``, for the processes of these ranks.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sfrs.cli import app
from sfrs.models.backbones import REGISTRY

REGISTRY["tiny"] = "tiny_backbone:TinyBackbone"


def of_this_process(argument) -> str:
    return argument[os.environ["RANK"]] if isinstance(argument, dict) else argument


for arguments in json.loads(Path(sys.argv[1]).read_text()):
    try:
        app([of_this_process(argument) for argument in arguments])
    except SystemExit as leaving:
        if leaving.code:
            raise
