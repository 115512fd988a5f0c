"""The documentation's examples do what they say.

``python`` and ``sh`` blocks of a page are one session from top to bottom: Python is compared with the output
it shows, commands have to succeed. A page with commands runs in a folder of its own that holds what ``sfrs
demo --size small`` leaves, and the real photographs. ``bash`` and ``text`` blocks are not run.
"""

import ast
import doctest
import re
import shlex
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from sfrs.cli import app
from sfrs.training.losses import SOFT_LOSSES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    pytest.param(page, id=page.name) for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
]
OUTPUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run(command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    assert program == "sfrs", f"{command}: other programs belong into a bash block, which is not run"
    if arguments[0] in ("demo", "city"):
        arguments += ["--size", "small"]
    with pytest.raises(SystemExit) as leaving:
        app(arguments)
    assert not leaving.value.code, command


def show(example: str, page: Path, names: dict) -> dict:
    """Run a block of Python, compare it with the output it shows, return its names."""
    if ">>>" not in example:
        exec(compile(example, page.name, "exec"), names)
        return names
    test = doctest.DocTestParser().get_doctest(example, names, page.name, str(page), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OUTPUT)
    assert runner.run(test, out=report.append, clear_globs=False).failed == 0, "".join(report)
    return test.globs


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run(f"sfrs demo --out {folder}")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_examples_do_what_they_say(page, tmp_path, monkeypatch, request):
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    if any(language == "sh" for language, _ in blocks):
        (tmp_path / "places").symlink_to(request.getfixturevalue("shared_places"))
        shutil.copytree(request.getfixturevalue("demo"), tmp_path / "runs/demo")
    names: dict = {}
    with patch.dict(SOFT_LOSSES):  # a page adds one
        for language, block in blocks:
            if language == "python":
                names = show(block, page, names)
            else:
                for line in filter(str.strip, block.replace("\\\n", " ").splitlines()):
                    run(line)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def message_texts() -> str:
    """Every string of the sources, its inserted values as ``…``."""
    found = []
    for source in [*(ROOT / "sfrs_ext").rglob("*.py"), *(ROOT / "python").rglob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_errors_listed_are_errors_given():
    texts = message_texts()
    listed = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/errors.md").read_text("utf-8"), re.MULTILINE)
    assert len(listed) > 20
    assert [message for message in listed if message not in texts] == []
