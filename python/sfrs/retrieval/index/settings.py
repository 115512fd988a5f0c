"""The settings an index begins with; ``sfrs.retrieval.index.store`` keeps them."""

from typing import Any

from sfrs.models.model import Model


def new_settings(model: Model, kind: str, zone: str = "", regions: bool | None = None) -> dict[str, Any]:
    """Settings of an index that is begun; ``descriptors``, ``quarters`` and ``compressed`` are file names.

    The names are of generation 0: what the first change writes anew, of generation 1, must be another file.
    """
    dtype = "float32" if kind == "exact" else "float16"
    return {
        "generation": 0,
        "kind": kind,
        "zone": zone,
        "size": model.size,
        "dim": model.dim,
        "dtype": dtype,
        "digests": model.digests(),
        "fingerprint": model.fingerprint(),
        "descriptors": f"descriptors-0.{dtype}",
        "quarters_shape": model.quarters_shape,
        "quarters": "quarters-0.float16" if regions else None,
        "compressed": None,
        "trained": 0,
    }
