"""An index opened to be searched."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfrs.data.images import Size
from sfrs.models.network import DescriptorNetwork
from sfrs.models.whitening import Whitening
from sfrs.retrieval.index.model import Model
from sfrs.retrieval.index.quantised import Compressed
from sfrs.retrieval.index.rows import map_rows
from sfrs.retrieval.index.scan import compare, scan
from sfrs.retrieval.index.store import Paths, Store, Table
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress

ATTEMPTS = 3
"""Times to open an index whose files a writer replaces meanwhile."""


class FileList(Sequence[Path]):
    """Paths that are made when they are asked for."""

    def __init__(self, files: Paths) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [Path(os.fsdecode(file)) for file in self._files[i]]
        return Path(os.fsdecode(self._files[i]))


class Index:
    """The images of an index as they were when it was opened; what is changed later is not seen.

    Nothing is written, and descriptors stay on disk: what the memory holds of them is the system's cache,
    and the compressed copy where the kind is pq or ivf. Searching may be done from several threads.

    Attributes:
        path: of the directory.
        model: what describes images.
        fingerprint: of network, whitening and size; equal where descriptors can be compared.
        kind: exact, float16, pq, ivf or disk.
        zone: UTM zone of the positions such as "33N"; "" for plain metres, or where no image has a position.
        files: paths of the n images.
        positions: float64 ``[n, 2]``, easting and northing in metres; nan where nothing is known.
    """

    def __init__(self, store: Store, table: Table, device: str) -> None:
        settings = store.settings
        self.path = store.path
        self.kind: str = settings["kind"]
        self.zone: str = settings["zone"]
        self.fingerprint: str = settings["fingerprint"]
        self.files = FileList(table.files)
        self.positions = table.positions
        whitened = settings["digests"]["whitening"] != ""
        self.model = Model.load(self.path, settings["size"], whitened=whitened, device=device)
        self._compressed = None
        if settings["compressed"]:
            self._compressed = Compressed.open(self.path / settings["compressed"], self.kind, self.model.dim)
        slots = int(table.slots[-1]) + 1 if len(table.slots) else 0
        self._slots = table.slots
        # A compressed copy names rows beyond the last image as well: those that were removed at the end.
        self._row_of = np.full(max(slots, len(self._compressed or ())), -1, dtype=np.int64)
        self._row_of[table.slots] = np.arange(len(table.slots))
        self._live = self._row_of >= 0
        self._descriptors = map_rows(
            self.path / settings["descriptors"],
            settings["dtype"],
            (self.model.dim,),
            slots,
            scattered=settings["compressed"] is not None,
        )
        self._quarters = None
        if settings["quarters"]:
            shape = self.model.quarters_shape
            self._quarters = map_rows(
                self.path / settings["quarters"], "float16", shape, slots, scattered=True
            )
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, *, device: str = "cpu") -> "Index":
        """Open the index at ``path`` as its last finished change left it.

        Args:
            device: torch device that describes images.

        Raises:
            UserError: it is no index, its first build has not finished, its format is another, or a file of
                it is damaged.
        """
        for attempt in range(ATTEMPTS):
            store = Store.open(path)
            try:
                table = store.snapshot()
                if store.generation == 0:
                    raise UserError(
                        f"{path}: this index is not finished; {len(store.pending().files):,} images are in "
                        "it so far. The command that began it goes on where it stopped."
                    )
                return cls(store, table, device)
            except UserError:
                # A writer that compacts puts other files in the place of those just read about.
                if attempt + 1 == ATTEMPTS or Store.open(path).generation == store.generation:
                    raise
            finally:
                store.close()
        raise AssertionError("unreachable")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def network(self) -> DescriptorNetwork:
        """The network, rebuilt from the copy the index holds."""
        return self.model.network

    @property
    def whitening(self) -> Whitening | None:
        return self.model.whitening

    @property
    def size(self) -> Size:
        """What images are resized to before they are described."""
        return self.model.size

    @property
    def has_regions(self) -> bool:
        """Whether :meth:`quarters` are stored."""
        return self._quarters is not None

    def describe(
        self, images: Sequence[str | Path], progress: Progress | None = None, **options
    ) -> np.ndarray:
        """Descriptors of image files as the index has them of its own, float32 ``[m, dim]``.

        Args:
            options: batch_size, threads, see :func:`sfrs.models.network.describe`.

        Raises:
            BadImageError: an image cannot be read.
        """
        return self.model.describe(images, progress, **options)

    def describe_image(self, image: Image.Image) -> np.ndarray:
        """Descriptor of an image in memory, float32 ``[1, dim]``."""
        return self.model.describe_image(image)

    def search(self, descriptors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar images of each query, best first.

        Args:
            descriptors: float32 ``[m, dim]`` unit vectors, from :meth:`describe`.

        Returns:
            (similarities float32 ``[m, k]``, rows int64 ``[m, k]`` of :attr:`files` and :attr:`positions`);
            -inf and -1 past the end. The similarities are exact for every kind: a compressed copy only
            chooses which rows are compared.

        Raises:
            ValueError: a shape or k is wrong, or a value is not finite.
        """
        queries = np.ascontiguousarray(descriptors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.model.dim or k < 1:
            raise ValueError(
                f"search: descriptors are {queries.shape} and k is {k}; expected [m, {self.model.dim}] and "
                "at least 1"
            )
        if not np.isfinite(queries).all():
            raise ValueError("search: the descriptors hold values that are not finite")
        if self._compressed is None:
            scores, slots = scan(self._descriptors, self._live, queries, k)
        else:
            with self._lock:  # faiss keeps in the index how many lists to read
                candidates = self._compressed.candidates(queries, k, self._live)
            scores, slots = compare(self._descriptors, candidates, queries, k)
        return scores, np.where(slots >= 0, self._row_of[slots], -1) if len(self) else slots

    def quarters(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Quarter VLADs of images, float32 ``[len(rows), 4, K, D]``: as stored, else from the files.

        Either way in the form of :func:`sfrs.retrieval.quarters.compact`, as :meth:`image_quarters` are too.

        Raises:
            BadImageError: they are not stored, and a file has gone or cannot be read.
        """
        if self._quarters is None:
            return self.model.quarters([self.files[row] for row in rows])
        return torch.from_numpy(self._quarters[self._slots[np.asarray(rows, dtype=np.int64)]]).float()

    def image_quarters(self, image: Image.Image | str | Path) -> Tensor:
        """Quarter VLADs of an image, float32 ``[1, 4, K, D]``.

        Raises:
            BadImageError: the file cannot be read.
        """
        return self.model.quarters([image])
