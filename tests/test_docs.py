"""The documentation's examples do what they say.

``python`` blocks of a page are one session, compared with the output they show. Lines of ``sh`` blocks are
run one after the other in a folder that holds what ``sfrs demo --size small`` leaves; ``bash`` and ``text``
blocks are not run.
"""

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_examples_give_the_output_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for block in blocks(page, "python"):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), 0)
            report: list[str] = []
            assert runner.run(test, out=report.append, clear_globs=False).failed == 0, "".join(report)
            names = test.globs
        else:
            exec(compile(block, page.name, "exec"), names)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    for places in (ROOT / "shared/places", ROOT.parent / "shared/places"):
        if places.is_dir():
            (folder / "places").symlink_to(places)
            break
    else:
        pytest.skip(f"no real photographs: neither {ROOT} nor the folder above it has shared/places")
    run("sfrs demo --out runs/demo", folder)
    return folder


def run(command: str, folder: Path) -> None:
    if re.match(r"sfrs (demo|city) ", command):
        command += " --size small"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    finished = subprocess.run(
        shlex.split(command, comments=True), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout}\n{finished.stderr}"


@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_run_as_written(page, workplace):
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                run(line, workplace)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8")):
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
