"""Networks that others published, by name: downloaded once into torch.hub's cache, read like any file."""

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch

from sfrs.runtime.errors import UserError

PATCH_NETVLAD = "https://huggingface.co/TobiasRobotics/Patch-NetVLAD/resolve/main/"
HLOC = "https://cvg-data.inf.ethz.ch/hloc/netvlad/"


@dataclass(frozen=True)
class PublishedNetwork:
    """A file of weights of another project."""

    url: str  # where it is downloaded from; its last part names the file in the cache
    licence: str  # of the project that published it
    what: str  # the layers in it and what they were trained on
    sha256: str = ""  # digest of the file, or its first digits; empty where none is published
    # How images are normalised, a key of `sfrs.models.backbones.VGG16_INPUTS`, where that is otherwise than
    # in other files with the same names of tensors.
    inputs: str = ""


PUBLISHED = {
    "sfrs/pitts30k": PublishedNetwork(
        "https://github.com/yxgeee/OpenIBL/releases/download/v0.1.0-beta/vgg16_netvlad.pth",
        "MIT",
        "SFRS of its authors, trained on Pitts30k: VGG16, NetVLAD, PCA to 4096",
    ),
    "netvlad/pitts30k": PublishedNetwork(
        HLOC + "Pitts30K_struct.mat",
        "MIT",
        "NetVLAD of its authors, trained on Pitts30k: VGG16, NetVLAD, PCA to 4096",
        sha256="a67d9d897d3b7942f206478e3a22a4c4c9653172ae2447041d35f6cb278fdc67",
    ),
    "netvlad/tokyo-time-machine": PublishedNetwork(
        HLOC + "TokyoTM_struct.mat",
        "MIT",
        "NetVLAD of its authors, trained on Tokyo Time Machine: VGG16, NetVLAD, PCA to 4096",
    ),
    "patch-netvlad/mapillary": PublishedNetwork(
        PATCH_NETVLAD + "mapillary_WPCA4096.pth.tar",
        "MIT",
        "NetVLAD of Patch-NetVLAD, trained on Mapillary: VGG16, NetVLAD, PCA to 4096",
    ),
    "patch-netvlad/pitts30k": PublishedNetwork(
        PATCH_NETVLAD + "pitts_WPCA4096.pth.tar",
        "MIT",
        "NetVLAD of Patch-NetVLAD, trained on Pitts30k: VGG16, NetVLAD, PCA to 4096",
    ),
    "torchvision/vgg16": PublishedNetwork(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "BSD-3-Clause",
        "VGG16 trained on ImageNet by torchvision: a start for training",
        sha256="397923af",
    ),
    "torchvision/vgg16-caffe": PublishedNetwork(
        "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
        "BSD-3-Clause",
        "VGG16 trained on ImageNet by its authors, as the paper starts from it",
        sha256="88682ab5",
        inputs="caffe",
    ),
}
"""Name -> network, for ``--weights`` and `sfrs.models.model.Model.load`."""


class DownloadError(UserError, ValueError):
    """A published file cannot be downloaded, or is not the published one."""


def published(path: str | Path) -> PublishedNetwork | None:
    """Return the network of this name, unless a file or folder has it."""
    name = Path(path).as_posix()
    return None if Path(path).exists() else PUBLISHED.get(name)


def downloaded(network: PublishedNetwork) -> Path:
    """Return the file of a published network in torch.hub's cache, downloaded if it is not there.

    Raises `DownloadError` if it cannot be downloaded, or its digest is not the published one.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / network.url.rpartition("/")[2]
    if not file.is_file():
        _download(network, file)
    elif network.sha256 and not (digest := _sha256(file)).startswith(network.sha256):
        raise DownloadError(
            f"{file}: this is not the file published at {network.url}: its SHA-256 begins with "
            f"{digest[: len(network.sha256)]}, expected {network.sha256}. Delete it to download it again."
        )
    return file


def _download(network: PublishedNetwork, file: Path) -> None:
    print(f"Downloading {network.url} ({network.licence}) to {file}", file=sys.stderr)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(  # under another name until it is whole and has the digest
            network.url, str(file), hash_prefix=network.sha256 or None, progress=sys.stderr.isatty()
        )
    except (OSError, HTTPException, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{network.url} cannot be downloaded ({reason}). Download it elsewhere and put it at {file}."
        ) from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for block in iter(partial(opened.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
