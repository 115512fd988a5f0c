"""``sfrs serve`` as a user runs it: what it says, how it stops, and how much memory a crowd costs."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from served import SPOTS, Client, build_index, photo, serving

pytest.importorskip("fastapi", reason='needs the extra "serve"')
from sfrs.commands import serve as command
from sfrs.data.coordinates import to_degrees
from sfrs.runtime.errors import UserError
from sfrs.web.serve import server

pytestmark = pytest.mark.slow

CROWD, MEGABYTES = 64, 3


@pytest.fixture(scope="module")
def index_path(tmp_path_factory) -> Path:
    return build_index(tmp_path_factory.mktemp("command"))


@pytest.fixture
def serve(monkeypatch):
    """Run the command up to where it would serve; returns what it would have served."""
    runs = []
    monkeypatch.setattr(server, "run", lambda *arguments: runs.append(arguments))
    app = typer.Typer()
    app.callback()(lambda: None)
    command.serve.register(app)

    def call(*arguments):
        app(["serve", *map(str, arguments)], standalone_mode=False)
        runs[-1][1].close()
        return runs[-1]

    return call


def test_it_says_where_it_is_and_opens_the_browser(serve, index_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(server, "open_browser", opened.append)
    serve("--index", index_path, "--port", 0, "--open")
    captured = capsys.readouterr()
    (address,) = re.findall(r"http://127\.0\.0\.1:\d+/", captured.out)
    assert f"{SPOTS} images" in captured.out and opened == [address] and "Warning" not in captured.err


def test_other_addresses_than_this_machines_own_are_warned_of(serve, index_path, capsys):
    serve("--index", index_path, "--port", 0, "--host", "0.0.0.0")
    assert "no password and no encryption" in " ".join(capsys.readouterr().err.split())


def test_a_neighbourhood_is_all_that_is_served(serve, index_path, capsys):
    latitude, longitude = to_degrees([[391300.0, 5840000.0]], "33N")[0]
    with serving(
        serve("--index", index_path, "--port", 0, "--near", f"{latitude},{longitude},150")[0]
    ) as client:
        assert (
            f"3 images of {index_path} within 150 m of {latitude}, {longitude} at" in capsys.readouterr().out
        )
        assert client.get("/health").json["images"] == len(client.get("/map").json["points"]) == 3
        names = {match["file"][:7] for match in client.locate(photo(9), "?top=9").json["matches"]}
        assert names == {"@391200", "@391300", "@391400"} and client.get("/images/3").status == 404
    with pytest.raises(UserError, match="holds no image in this circle"):
        serve("--index", index_path, "--port", 0, "--near", "-30,100,500")


def test_what_is_no_index_is_named(serve, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        serve("--index", tmp_path / "nowhere", "--port", 0)


def test_a_missing_extra_is_named(serve, index_path, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UserError, match=re.escape('needs uvicorn: pip install "sfrs-ext[serve]"')):
        serve("--index", index_path)


def peak_megabytes(process: subprocess.Popen) -> float:
    """The most memory a process has had so far."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1000


def test_a_crowd_costs_bounded_memory_and_ctrl_c_ends_it(index_path):
    arguments = [sys.executable, "-m", "sfrs", "serve", "--index", index_path, "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            client = Client(int(re.search(r":(\d+)/", process.stdout.readline())[1]))
            assert client.locate(photo(0)).status == 200
            before = peak_megabytes(process)
            large = photo(0) + bytes(int(MEGABYTES * 1e6))  # decoders stop at the end of the picture
            with ThreadPoolExecutor(CROWD) as pool:
                answers = list(pool.map(lambda _: client.locate(large, "?top=1"), range(CROWD), timeout=120))
            assert {answer.status for answer in answers} <= {200, 503}
            rows = [answer.json["matches"][0]["row"] for answer in answers if answer.status == 200]
            assert rows and set(rows) == {0}
            # 25 bodies at a time are 75 MB, all at once would be 192 MB.
            growth = peak_megabytes(process) - before
            assert growth < 160
            assert client.get("/health").json["busy"] == 0
            process.send_signal(signal.SIGINT)
            _, messages = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0 and "Stopped." in messages and "Traceback" not in messages
