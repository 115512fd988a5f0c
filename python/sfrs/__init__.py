"""Train and evaluate image localisation by retrieval with SFRS on fused operators.

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrs.training.config import TrainConfig

if TYPE_CHECKING:
    from sfrs.data.places import Places
    from sfrs.models.describer import Describer
    from sfrs.training.run_folder import RunResult


def load(path: str | Path, whitening: str | Path | None = None, *, whiten: bool = True) -> "Describer":
    """Load a trained network as one module: RGB images in 0..1 ``[B, 3, H, W]`` -> unit descriptors.

    Args:
        path: what ``sfrs export`` or ``sfrs train`` wrote, or a network of other origin; see
            :func:`sfrs.models.network.load_network`.
        whitening: a file of its own with the PCA whitening. By default the one in ``path`` is applied,
            if there is one.
        whiten: False leaves out any whitening.

    Returns:
        :class:`sfrs.models.describer.Describer`, on the CPU and in evaluation mode.

    Raises:
        WeightsError: a file cannot be read, NetVLAD is missing, or the whitening does not fit the network.
    """
    from sfrs.models.describer import load_describer  # torch: too slow for `sfrs --help`

    return load_describer(path, whitening, whiten=whiten)


def train(
    places: "str | Path | tuple[Places, Places]",
    config: TrainConfig | None = None,
    out: str | Path = "runs/sfrs",
    **options: Any,
) -> "RunResult":
    """Train a network in generations (SFRS) and keep everything in a directory.

    Args:
        places: to train on and to validate on; or a folder or manifest with the splits train and val.
        config: by default the paper's values, see `TrainConfig`.
        out: directory of the run.
        options: of :func:`sfrs.training.trainer.train`, which documents them: ``network`` to start from,
            ``resume``, ``progress``, ``first_generation``, ``features``.

    Returns:
        The best network of every generation; ``.network()`` loads the last one's.

    Raises:
        UserError: there is a run in ``out`` already, or the images cannot be trained on.
    """
    from sfrs.data.places import load_places
    from sfrs.training.trainer import train

    if not isinstance(places, tuple):
        places = load_places(places, "train"), load_places(places, "val")
    return train(places, config or TrainConfig(), out, **options)
