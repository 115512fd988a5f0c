"""An application behind a real socket, and a client that sends exactly what it is told."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import torch
import typer
from pictures import picture
from PIL import Image

from sfrs.data.images import load_image
from sfrs.models.backbones import build_backbone
from sfrs.models.fitting import init_vlad_from_images
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork, save_network

BOUNDARY = "7f3a"
SPOTS = 12
"""Places in the index, 100 m apart in UTM zone 33N; scene i is row i."""


@dataclass
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


@dataclass
class Client:
    """Sends one request per connection to a server on this machine."""

    port: int

    def ask(self, method: str, path: str, body=None, chunked: bool = False, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names, encode_chunked=chunked)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def locate(self, body: bytes, query: str = "", kind: str = "image/jpeg", **headers: str) -> Answer:
        return self.ask("POST", f"/locate{query}", body, Content_Type=kind, **headers)

    def locate_form(self, photo: bytes, query: str = "") -> Answer:
        return self.locate(form(photo), query, f"multipart/form-data; boundary={BOUNDARY}")


def form(photo: bytes, name: str = "photo") -> bytes:
    """A multipart form with one file."""
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="x.jpg"'
    return f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def serving(app) -> Iterator[Client]:
    """Serve an application on a free port until the block ends."""
    from sfrs.web.serve import server

    listener = server.listen("127.0.0.1", 0)
    served = server.server(app)
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Client(listener.getsockname()[1])
    finally:
        served.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive(), "the server did not end"


def photo(scene: int, format: str = "JPEG", noise: float = 0.05, **options) -> bytes:
    """A photograph of a scene, as the bytes of a file."""
    return encoded(picture(scene, 96, 128, noise), format, **options)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def small_network(files: list[Path]) -> DescriptorNetwork:
    """6 channels and 4 clusters fitted to the images: enough to tell scenes apart, at once."""
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("gradient", dim=6, width=4), 4).eval()
    with torch.no_grad():
        network.backbone.init_pca(network.trunk(torch.stack([load_image(file) for file in files])))
    init_vlad_from_images(Model(network, size=None), files, images=len(files))
    return network


def build_index(folder: Path) -> Path:
    """Make an index of `SPOTS` places with ``sfrs index``, as a user does."""
    from sfrs.commands import index

    photos = folder / "photos"
    photos.mkdir()
    for scene in range(SPOTS):
        name = f"@{391000 + 100 * scene:.2f}@{5840000:.2f}@33@U@52.7@13.4@@@@@@@@@.jpg"
        picture(scene, 96, 128).save(photos / name, quality=95)
    network = small_network(sorted(photos.iterdir()))
    save_network(folder / "network.safetensors", network, {"image_size": [96, 128]})
    app = typer.Typer()
    app.callback()(lambda: None)
    index.index.register(app)
    out = folder / "town.index"
    arguments = ["index", photos, "--weights", folder / "network.safetensors", "--out", out]
    app([str(argument) for argument in arguments], standalone_mode=False)
    return out
