"""What is read from disk or off the wire: folders that are made once, and the commands that read them."""

import csv
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import ExifTags, Image
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).parents[1] / "sfrs"))
from pictures import picture
from published_sets import write_pittsburgh
from report_data import evaluated
from served import BOUNDARY, form
from tiny_town import write_town
from tiny_training import SIZE, network_of_seed, tiny_config

from sfrs.cli import app
from sfrs.data.exif import gps
from sfrs.data.images import load_image
from sfrs.data.photos import Locator, Sources, project
from sfrs.data.places import load_places
from sfrs.models.backbones import REGISTRY
from sfrs.models.model import Model
from sfrs.models.whitening import Whitening
from sfrs.retrieval.index import Index, quantised
from sfrs.retrieval.index.derive import derive
from sfrs.retrieval.index.store import Entry, Store
from sfrs.runtime import array_files
from sfrs.runtime.errors import UserError
from sfrs.training import trainer
from sfrs.training.progress import TrainingProgress
from sfrs.web.serve.app import create_app

REGISTRY["tiny"] = "tiny_backbone:TinyBackbone"
COMMANDS = get_command(app)
ROWS = 160
"""Made-up descriptors of a compressed index."""
NAME = "@{}@4000000@33@U@@@@@@@@@@@@.jpg"


@dataclass
class Subject:
    """A folder whose files are damaged.

    Attributes:
        make: fills the folder.
        read: reads it as people do, given the folder and the file in it that is damaged; raises `UserError`
            where it says what is wrong.
        suffixes: of the files that are damaged; "" is all of them.
        share: how often its turn comes.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path, Path], Any]
    suffixes: tuple[str, ...] = ("",)
    share: int = 1
    files: dict[Path, bytes] = field(default_factory=dict)

    def prepare(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.make(folder)
        self.files = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}

    def damageable(self) -> list[Path]:
        return [file for file, data in self.files.items() if data and file.name.endswith(self.suffixes)]

    def restore(self, folder: Path) -> None:
        """Put all files back as they were made, and nothing else."""
        for file in folder.rglob("*"):
            if file.is_file() and file not in self.files:
                file.unlink()
        for file, data in self.files.items():
            if not file.is_file() or file.read_bytes() != data:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)


def sfrs(*arguments: Any) -> None:
    """Run a command; what it raises is not turned into a message and an exit code."""
    COMMANDS.main([str(argument) for argument in arguments], standalone_mode=False)


def convert_in_fork(*arguments: str) -> str:
    """Read a MATLAB or HDF5 file in a child process, as the product does, without starting Python again."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            array_files.convert(*arguments)
            os._exit(0)
        except BaseException as error:
            os.write(writing, f"{error}"[:1000].encode(errors="replace"))
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, errors="replace") as said:
        why = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return why or (f"signal {-code}" if code else "")


def write_photos(folder: Path, count: int = 4, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for scene in range(first, first + count):
        picture(scene).save(folder / NAME.format(500000 + 100 * scene))
    return folder


def make_index(folder: Path) -> None:
    fitted = Model(network_of_seed(), Whitening(torch.eye(24)[:8], torch.zeros(8)), size=SIZE)
    photos = write_photos(folder / "photos", 12)  # enough for a self-test
    Index.build(photos, fitted, out=folder / "i", regions=True)


def read_index(folder: Path, file: Path) -> None:
    photo = folder / "photos" / NAME.format(500000)
    sfrs("index", "--out", folder / "i", "--info")
    found = Index.open(folder / "i").locate(photo, rerank="regions", workers=0)
    found.lines(), found.as_json(), found._repr_html_()


def change_index(folder: Path, file: Path) -> None:
    write_photos(folder / "more", 1, first=9)
    sfrs("index", folder / "more", "--out", folder / "i", "--remove", "@500000*", "--kind", "float16")


def make_compressed(folder: Path) -> None:
    rows = torch.randn(ROWS, 24, generator=torch.Generator().manual_seed(0))
    for kind in ("float16", *quantised.KINDS):
        path = folder / kind
        path.mkdir()
        store = Store.create(path, Model(network_of_seed(), size=SIZE), kind)
        entries = [Entry(b"/made/up/%d.jpg" % i, 9.0 * i, 0.0, 0, 0) for i in range(ROWS)]
        store.add(entries, torch.nn.functional.normalize(rows).numpy())
        with patch.object(quantised, "FEWEST", 100):
            derive(store, None)
        store.close()


def read_compressed(folder: Path, file: Path) -> None:
    Index.open(file.parent).locate(picture(3))


def make_weights(folder: Path) -> None:
    import h5py
    from scipy.io import savemat

    Model(network_of_seed(), size=SIZE).save(folder / "own.safetensors")
    layer = {"pca_layer.weight": torch.randn(8, 24), "pca_layer.bias": torch.zeros(8)}
    torch.save({"state_dict": layer, "epoch": 3, "best": np.float64(0.5)}, folder / "white.pth")
    Whitening(torch.eye(24)[:8], torch.zeros(8)).save(folder / "white.safetensors")
    layers = {"name": "conv1_1", "type": "conv", "weights": [np.ones((3, 3, 3, 4)), np.ones(4)]}
    savemat(folder / "net.mat", {"net": {"layers": layers}})
    with h5py.File(folder / "pca.h5", "w") as file:
        file["U"], file["lams"], file["mu"] = np.eye(24)[:, :8], np.ones(8), np.zeros((24, 1))
    write_pittsburgh(folder / "pitts", "test", spots=2)
    write_photos(folder / "photos", 1)


def read_weights(folder: Path, file: Path) -> None:
    if file.stem == "white":
        Whitening.load(file)
    else:
        sfrs("describe", folder / "photos", "--weights", file, "--out", folder / "x.npy")


def read_matrices(folder: Path, file: Path) -> None:
    if file.stem == "pitts30k_test":
        load_places(file)
        return
    array_files.read_arrays(file)
    with suppress(UserError if file.stem == "net" else ()):  # a single layer is no network
        Whitening.load(file)


def make_sets(folder: Path) -> None:
    lines = [("file", "role", "easting", "northing", "split", "panorama", "condition")]
    for role, east in (("database", 0), ("query", 3)):
        for i, file in enumerate(sorted(write_photos(folder / role).iterdir())):
            lines.append((f"{role}/{file.name}", role, 500000 + 100 * i + east, 4e6, "test", i, "day"))
    with (folder / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def read_sets(folder: Path, file: Path) -> None:
    sfrs("data", "check", folder / "set.csv")
    sfrs("index", folder / "set.csv", "--out", folder / "i", "--backbone", "tiny", "--random-weights")


def make_images(folder: Path) -> None:
    shot, exif = picture(1, 96, 128), Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.XResolution] = 6, 72.0
    north, east = (55.0, 41.0, 59.5), (12.0, 33.0, 0.0)
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: north, 3: "E", 4: east, 29: "2023:01:01"})
    for name, options in {
        "a.jpg": {},
        "b.png": {},
        "c.webp": {},
        "d.tif": {"compression": "tiff_lzw"},
    }.items():
        shot.save(folder / name, exif=exif, **options)
    shot.save(folder / "e.jpg", progressive=True)
    for name, mode in (("f.jpg", "CMYK"), ("g.png", "P"), ("h.jpg", "L")):
        shot.convert(mode).save(folder / name)
    Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)).save(folder / "i.png")


def read_images(folder: Path, file: Path) -> None:
    for size in (None, 40, SIZE):
        load_image(file, size)
    gps(file)


def index_images(folder: Path, file: Path) -> None:
    options = ("--backbone", "tiny", "--random-weights", "--skip-bad-images", "--allow-unplaced")
    sfrs("index", folder, "--out", folder / "i", *options)


def make_sources(folder: Path) -> None:
    points, lines = [], ["file,latitude,longitude,easting,northing,zone"]
    for i in range(6):
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"2024:05:01 12:00:0{i}"
        picture(i).save(folder / f"{i}.jpg", exif=exif)
        where = f"52.7,13.{i},,," if i % 2 else f",,39{i}000,5840000,33N"
        lines += [f"{i}.jpg,{where}"] * (i < 4)
        time = f"<time>2024-05-01T12:00:0{i}Z</time>"
        points.append(f'<trkpt lat="52.{i}" lon="13.4">{time}</trkpt>')
    (folder / "positions.csv").write_text("\n".join(lines))
    track = f"<trk><trkseg>{''.join(points)}</trkseg></trk>"
    (folder / "track.gpx").write_text(f'<gpx xmlns="http://www.topografix.com/GPX/1/1">{track}</gpx>')


def read_sources(folder: Path, file: Path) -> None:
    sources = Sources(str(folder / "positions.csv"), str(folder / "track.gpx"), "+00:00")
    project(Locator(sources).all(sorted(folder.glob("*.jpg"))))


def make_uploads(folder: Path) -> None:
    make_index(folder)
    body = folder / "body"
    body.mkdir()
    for kind in ("JPEG", "PNG", "WEBP"):
        picture(3, 96, 128).save(body / f"photo.{kind.lower()}", kind)
    (body / "form").write_bytes(form((body / "photo.jpeg").read_bytes()))


def ask_server(folder: Path, file: Path) -> None:
    """Send a body to the server; whatever it is, an answer in JSON is wanted, and no fault of the server."""
    kind = f"multipart/form-data; boundary={BOUNDARY}" if file.name == "form" else f"image/{file.suffix[1:]}"
    with TestClient(create_app(Index.open(folder / "i")), base_url="http://localhost") as client:
        body = file.read_bytes() if file.exists() else b""
        answer = client.post("/locate", content=body, headers={"content-type": kind})
    assert answer.status_code < 500 and answer.json(), answer.text
    if answer.status_code != 200:
        raise UserError(answer.text)


class Stop(TrainingProgress):
    """Ends a run within generation 2."""

    def step(self, generation, epoch, report):
        if (generation, epoch, report.step) == (2, 1, 2):
            raise KeyboardInterrupt


def make_run(folder: Path) -> None:
    town = write_town(folder / "town")
    changes = dict(epochs=(1, 1), checkpoint_minutes=0, trunk_cache="disk", teacher="last")
    config = tiny_config(data=str(town), batch_size=8, negative_pool=9, **changes)
    with suppress(KeyboardInterrupt):
        trainer.train(town, config, folder / "run", network=network_of_seed(), progress=Stop())


def read_run(folder: Path, file: Path) -> None:
    sfrs("runs", folder, "--json")
    Model.load(folder / "run")


def resume_run(folder: Path, file: Path) -> None:
    # The figure takes longer than all else, and reads nothing.
    with patch.object(trainer, "recall_curves", lambda *curves, **options: None):
        sfrs("train", "--resume", folder / "run", "--workers", "1")


def make_evaluation(folder: Path) -> None:
    evaluated(folder, network_of_seed())
    make_run(folder)


def read_evaluation(folder: Path, file: Path) -> None:
    sfrs("report", folder / "evaluation", "--out", folder / "page", "--cases", "1")


def report_run(folder: Path, file: Path) -> None:
    sfrs("report", folder / "run", "--out", folder / "page", "--cases", "1", "--split", "val")


RUN = (".json", ".jsonl", ".safetensors", ".bin", ".done")
SUBJECTS = (
    Subject("index", make_index, read_index, share=8),
    Subject("index changed", make_index, change_index, share=2),
    Subject("compressed index", make_compressed, read_compressed, share=8),
    Subject("weights", make_weights, read_weights, (".safetensors", ".pth"), share=4),
    Subject("arrays", make_weights, read_matrices, (".mat", ".h5")),
    Subject("data sets", make_sets, read_sets, (".csv",)),
    Subject("images", make_images, read_images, share=16),
    Subject("images indexed", make_images, index_images),
    Subject("positions", make_sources, read_sources, (".csv", ".gpx"), share=4),
    Subject("uploads", make_uploads, ask_server, ("photo.jpeg", "photo.png", "photo.webp", "form"), share=4),
    Subject("run", make_run, read_run, RUN, share=8),
    Subject("run resumed", make_run, resume_run, RUN, share=2),
    Subject("evaluation", make_evaluation, read_evaluation, (".json", ".csv", ".safetensors"), share=4),
    Subject("report of a run", make_evaluation, report_run, RUN, share=2),
)
