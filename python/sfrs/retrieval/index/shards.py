"""An index on a server of Milvus that several processes make together, each of a share of the photographs."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sfrs.models.model import Model
from sfrs.retrieval.index.adding import Adding, Change
from sfrs.retrieval.index.engine import EngineBuilder
from sfrs.retrieval.index.milvus import on_server
from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, Tasks


def build_together(
    joined: Processes,
    photos: Path,
    model: Model | None,
    *,
    out: str | Path,
    how: Mapping[str, Any],
    adding: Adding,
    tasks: Tasks,
) -> Change | None:
    """Index photographs by all processes of a run, or add to an index what is new or changed.

    The main one reads where the photographs were taken and begins the index, with clusters and whitening of
    its own; the others take the network from there. Each describes its share of what is not in the index as
    it is now. Readers see a new index when all are through. Interrupted at any moment, in one process or in
    all, it goes on where it was when it is called again, by as many processes as there are then.

    Args:
        model: see `sfrs.retrieval.index.opened.Index.build`; the main one's counts.
        how: ``kind``, ``regions`` and ``zone`` of a `sfrs.retrieval.index.build.Builder`.
        tasks: of the main process; the others show nothing.

    Returns:
        the change; None in all but the main process.

    Raises:
        UserError: as `sfrs.retrieval.index.build.Builder`, or the index is on no server.
        PeerLostError: another process has failed or ended.
    """
    if not on_server(out):
        raise UserError(
            f"--out is {out}, to which one process writes at a time; expected milvus://HOST:PORT/COLLECTION, "
            "or one process, without torchrun."
        )
    joined.agree("options", {"--out": str(out), "PHOTOS": str(photos)})
    with ExitStack() as opened:
        planned, builder = [], None
        if joined.is_main:
            found = adding.read(photos, tasks)
            builder = opened.enter_context(EngineBuilder(out, model, **how, tasks=tasks))
            planned = builder.plan(found, adding)
        share = joined.deal(planned)
        builder = builder or opened.enter_context(EngineBuilder(out))
        described = _Described(joined, tasks("describing"), len(planned))
        builder.describe(share, adding, described.add)
        joined.meet(described.show)
        changes = joined.gather(builder.change)
        if changes is None:
            return None
        for other in changes[1:]:
            builder.change.include(other)
        return builder.finish()


class _Described:
    """The number of images that the processes have described together, as the main one shows it."""

    def __init__(self, joined: Processes, progress: Progress, total: int) -> None:
        self.joined, self.progress, self.total = joined, progress, total
        self._mine = 0

    def add(self, done: int, _: int) -> None:
        """Count what this process has done now."""
        self.show(done - self._mine)
        self._mine = done

    def show(self, more: int = 0) -> int:
        """Show the number; returns it."""
        count = self.joined.count_up("described", more)
        if self.total:
            self.progress(count, self.total)
        return count
