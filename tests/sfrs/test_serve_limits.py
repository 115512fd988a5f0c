"""``sfrs serve``: what it refuses, and that nothing sent to it brings it down."""

import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from served import SPOTS, build_index, encoded, form, photo, serving

pytest.importorskip("fastapi", reason='needs the extra "serve"')
from sfrs.retrieval.index import Index
from sfrs.runtime.errors import UserError
from sfrs.web.serve import app as application
from sfrs.web.serve import connection as connection_module
from sfrs.web.serve import server, uploads
from sfrs.web.serve.app import create_app
from sfrs.web.serve.refusal import Refusal
from sfrs.web.serve.uploads import NETWORK_MEGAPIXELS, Limits, decode_photo

pytestmark = pytest.mark.slow

LIMITS = Limits(megabytes=1, megapixels=4)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return Index.open(build_index(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def client(index):
    with serving(create_app(index, limits=LIMITS)) as client:
        yield client


def post(*headers: str) -> bytes:
    """The head of a request to locate, to be sent as it is."""
    return "\r\n".join(("POST /locate HTTP/1.1", "Host: localhost", *headers, "", "")).encode()


def connect(client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), timeout=60)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 10_000) -> bytes:
    """A valid grey PNG of side x side pixels in a few kilobytes."""
    rows = zlib.compress((b"\0" + bytes(side // 8)) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (photo(0)[:900], "image/jpeg", 415, "cannot be decoded"),
        (photo(0, "PNG")[:900], "image/png", 415, "cannot be decoded"),
        (b"\xff\xd8\xff and then words", "image/jpeg", 415, "cannot be decoded"),
        (b"no picture at all", "image/jpeg", 415, "no JPEG, PNG or WebP"),
        (SVG, "image/svg+xml", 415, "image/svg+xml"),
        (SVG, "image/png", 415, "no JPEG, PNG or WebP"),
        (encoded(picture(0), "GIF"), "image/gif", 415, "image/gif"),
        (encoded(picture(0), "GIF"), "image/jpeg", 415, "no JPEG, PNG or WebP"),
        (encoded(picture(0), "TIFF"), "application/octet-stream", 415, "no JPEG, PNG or WebP"),
        (b"photo=x", "application/x-www-form-urlencoded", 415, "no JPEG, PNG or WebP"),
        (b"", "image/jpeg", 422, "empty"),
        (encoded(Image.new("RGB", (9, 40)), "PNG"), "image/png", 422, "9 x 40 pixels"),
        (bomb(), "image/png", 413, "10000 x 10000 pixels"),
        (bomb(40_000), "image/png", 413, "megapixels"),
        (bytes(1_000_001), "image/jpeg", 413, "larger than 1 MB"),
        (form(b""), "multipart/form-data; boundary=7f3a", 422, "empty"),
        (form(bytes(1_200_000)), "multipart/form-data; boundary=7f3a", 413, "larger than 1 MB"),
        (form(SVG), "multipart/form-data; boundary=7f3a", 415, "no JPEG, PNG or WebP"),
        (form(photo(0))[:500], "multipart/form-data; boundary=7f3a", 422, "no whole file"),
        (b"--7f3a--\r\n", "multipart/form-data; boundary=7f3a", 422, "no whole file"),
        (b"gibberish", "multipart/form-data; boundary=7f3a", 422, "form cannot be read"),
        (form(photo(0)), "multipart/form-data", 422, "boundary"),
        (form(photo(0))[:-10] + b"\r\n" + form(photo(1)), "multipart/form-data; boundary=7f3a", 422, "files"),
    ],
)
def test_what_is_no_photo_is_refused_in_words(client, body, kind, status, words):
    answer = client.locate(body, kind=kind)
    assert answer.status == status, answer.body
    assert words in answer.error and answer.headers["Content-Type"] == "application/json"
    assert " at 0x" not in answer.error  # what Python calls things in here
    assert client.get("/health").json["busy"] == 0


@pytest.mark.parametrize(
    ("query", "words"),
    [("?top=0", "top is '0'"), ("?top=51", "top is '51'"), ("?top=x", "top is 'x'"),
     ("?rerank=magic", "rerank is 'magic'"), ("?explain=perhaps", "explain is 'perhaps'")],
)  # fmt: skip
def test_wrong_parameters_are_named(client, query, words):
    answer = client.locate(photo(0), query)
    assert answer.status == 422 and words in answer.error


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/locate", 405), ("GET", "/nothing", 404), ("PUT", "/", 405)]
)
def test_other_paths_and_methods_are_answered_in_json_too(client, method, path, status):
    answer = client.ask(method, path)
    assert answer.status == status and path in answer.error


def test_a_body_without_end_is_cut_off_at_the_limit(client):
    head = post("Content-Type: image/jpeg", "Transfer-Encoding: chunked")
    piece = b"10000\r\n" + b"\xff\xd8\xff\xe0" * 16384 + b"\r\n"
    with connect(client) as connection:
        connection.sendall(head)
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 100e6:
                connection.sendall(piece)
                sent += len(piece)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413") and b"larger than 1 MB" in answer
    assert sent < 20e6  # 1 MB and what the kernel's buffers hold


def test_a_body_that_is_announced_too_large_is_not_read(client):
    head = post("Content-Type: image/png", "Content-Length: 99999999")
    with connect(client) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_clients_that_ask_first_are_told_before_they_send(client):
    for length, expected in ((1_500_000, b"HTTP/1.1 413"), (999, b"HTTP/1.1 100")):
        with connect(client) as connection:
            announced = ("Expect: 100-continue", f"Content-Length: {length}")
            connection.sendall(post("Content-Type: image/png", *announced))
            assert connection.recv(4096).startswith(expected)


def test_a_body_that_does_not_arrive_gives_its_place_up(index):
    head = post("Content-Type: image/png", "Content-Length: 999")
    with serving(create_app(index, limits=Limits(waiting=0, reading_seconds=0.3))) as client:
        with connect(client) as connection:
            connection.sendall(head + b"\x89PNG")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert client.locate(photo(0)).status == 200


@pytest.mark.parametrize(
    "kind", ["image/jpg", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_a_photo_is_known_by_its_bytes(client, kind):
    assert client.locate(photo(0), kind=kind).status == 200


def test_slow_bodies_keep_nobody_waiting_and_are_cut_off(index, monkeypatch):
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.2)
    with serving(create_app(index, limits=Limits(waiting=1))) as client, ExitStack() as stack:
        slow = [stack.enter_context(connect(client)) for _ in range(3)]
        for connection in slow:
            connection.sendall(post("Content-Type: image/png", "Content-Length: 999") + b"\x89PNG")
        assert client.locate(photo(0)).status == 200
        time.sleep(0.3)
        for connection in slow:
            connection.sendall(b"x")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert client.get("/health").json["busy"] == 0


def test_idle_connections_make_room_and_end(client, monkeypatch):
    monkeypatch.setattr(connection_module, "CONNECTIONS", 8)
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(client)) for _ in range(30)]
        idle[-1].sendall(b"GET / HTTP/1.1\r\n")
        assert client.get("/health").status == 200
        assert idle[0].recv(1) == b""  # closed for those that came after it
    monkeypatch.setattr(connection_module, "HEAD_SECONDS", 0.2)
    with connect(client) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert idle.recv(1) == b""


def test_what_is_no_http_is_answered_in_json(client):
    with connect(client) as connection:
        connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400") and b'{"error": "This is no HTTP request' in answer


def test_a_client_that_leaves_is_no_error(index, capsys):
    with serving(create_app(index, limits=Limits(waiting=0))) as client:
        for _ in range(3):
            with connect(client) as connection:
                connection.sendall(post("Content-Type: image/png", "Content-Length: 999") + b"\x89PNG")
                while client.get("/health").json["busy"] == 0:
                    pass
            while client.get("/health").json["busy"] > 0:
                pass
        assert client.locate(photo(0)).status == 200
    assert capsys.readouterr().err == ""


def test_hostile_bytes_are_refused_and_nothing_else():
    random = np.random.default_rng(0)
    whole = [photo(0, format) for format in ("JPEG", "PNG", "WEBP")]
    refused = 0
    for i in range(600):
        data = np.frombuffer(whole[i % 3], np.uint8).copy()
        where = random.integers(0, min(len(data), 400 if i % 2 else len(data)), random.integers(1, 12))
        data[where] = random.integers(0, 256, len(where))
        try:
            assert decode_photo(data.tobytes(), LIMITS, (96, 128)).mode == "RGB"
        except Refusal as refusal:
            refused += 1
            assert refusal.status in (413, 415, 422) and refusal.message
    assert 50 < refused < 600


def test_what_the_network_sees_is_bounded_whatever_the_shape():
    large = encoded(Image.new("L", (2400, 1800)), "PNG")
    kept = decode_photo(large, Limits(), None)
    assert kept.width * kept.height <= 1.001e6 * NETWORK_MEGAPIXELS
    assert kept.width / kept.height == pytest.approx(4 / 3, abs=0.01)
    deep = encoded(Image.fromarray(np.zeros((1800, 2400), np.uint16)), "PNG")
    assert max(decode_photo(deep, Limits(), None).size) < 2000
    with pytest.raises(Refusal, match="too elongated"):
        decode_photo(encoded(Image.new("L", (20_000, 20)), "PNG"), Limits(), 480)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:80"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "192.168.1.7:8000"}, 200),
        ({"Host": "photos.example"}, 421),
        ({"Host": "localhost.photos.example"}, 421),
        ({"Host": "127.0.0.1.photos.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "["}, 421),
        ({"Host": "x@localhost"}, 421),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://photos.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "same-site"}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
    ],
)
def test_pages_of_other_sites_are_kept_out(client, headers, status):
    assert client.get("/health", **headers).status == status


def test_names_can_be_allowed(index):
    with serving(create_app(index, hosts=["photos.example"])) as client:
        assert client.get("/health", Host="Photos.example:8000").status == 200
        forwarded = {"Host": "photos.example", "Origin": "https://photos.example"}  # by a reverse proxy
        assert client.locate(photo(0), **forwarded).status == 200
        assert client.locate(photo(0), **forwarded | {"Host": f"127.0.0.1:{client.port}"}).status == 403


def test_no_answer_opens_itself_to_other_sites(client):
    for path in ("/", "/map", "/health", "/images/0", "/nothing"):
        headers = client.get(path).headers
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cross-Origin-Resource-Policy"]


def test_more_than_can_wait_are_told_to_come_again(index, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(application, "answer", lambda *_, **__: {"waited": gate.wait(60)})
    with serving(create_app(index, limits=Limits(waiting=3))) as client, ThreadPoolExecutor(4) as pool:
        held = [pool.submit(client.locate, photo(0)) for _ in range(4)]
        while client.get("/health").json["busy"] < 4:
            assert not any(future.done() for future in held)
        refused = client.locate(photo(0))
        assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1
        assert "try again" in refused.error
        gate.set()
        assert [future.result(60).status for future in held] == [200] * 4
        assert client.locate(photo(0)).status == 200


def test_64_at_once_are_answered_rightly_or_sent_away(client):
    photos = [photo(i % SPOTS, noise=0.02) for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda body: client.locate(body, "?top=2"), photos, timeout=120))
    assert {answer.status for answer in answers} <= {200, 503}
    located = [(i, answer.json) for i, answer in enumerate(answers) if answer.status == 200]
    assert len(located) >= 1 + LIMITS.waiting
    assert all(found["matches"][0]["row"] == i % SPOTS for i, found in located)
    assert client.get("/health").json["busy"] == 0


def test_what_fails_inside_is_said_and_survived(index, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("secret detail")

    with serving(create_app(index)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(application, "answer", fails)
            answer = client.locate(photo(0))
        assert answer.status == 500 and "secret" not in answer.error
        assert client.locate(photo(0)).status == 200


def test_a_taken_port_is_named():
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert port > 0 and server.url(taken) == f"http://127.0.0.1:{port}/"
        with pytest.raises(UserError, match=f"--port is {port}, but another program listens there"):
            server.listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 300])
def test_an_address_that_is_not_this_machines_is_named(host):
    with pytest.raises(UserError, match="no address of this machine"):
        server.listen(host, 0)


def test_loopback_is_told_from_the_rest():
    assert all(map(server.is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(server.is_loopback, ("0.0.0.0", "::", "192.168.1.7", "photos.example")))
