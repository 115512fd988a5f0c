"""Models for ``torch.hub.load``, from this folder or from a checkout of it.

No weights are published under this project's name. They come from a file in any format that ``sfrs`` reads,
its own or that of another project, or from a published network by its name, which is downloaded: both are
listed in docs/drop-in.md.
"""

import sys
import warnings
from pathlib import Path

dependencies = ["torch", "numpy", "PIL", "safetensors"]


def vgg16_netvlad(pretrained=False, *, weights=None, whitening=None, whiten=True, clusters=64):
    """VGG16, NetVLAD and, if given, PCA whitening: RGB in 0..1 ``[B, 3, H, W]`` -> unit descriptors.

    The images' normalisation is part of the model. Descriptors have ``clusters * 512`` numbers, or as many
    as the whitening keeps.

    Args:
        pretrained: the same as ``weights``. True is an error that says where weights come from.
        weights: a file of weights, or the name of a published network, as "sfrs/pitts30k"; without one VGG16
            and NetVLAD are random.
        whitening: a file with the whitening; by default the one in ``weights`` is applied if there is one.
        whiten: False leaves out any whitening.
        clusters: K of a network without weights; a file brings its own.

    Returns:
        :class:`sfrs.Model` on the CPU, in evaluation mode.

    Raises:
        ValueError: the arguments contradict each other, or a file cannot be used.
        ImportError: the operators are not compiled for this Python; the message says what to type.
    """
    if pretrained is True:
        raise ValueError(
            "vgg16_netvlad: no weights are published under this project's name, so pretrained=True has "
            "nothing to load. Give weights='sfrs/pitts30k', the network of the paper's authors, another in "
            "docs/drop-in.md, or weights=FILE, as of sfrs train."
        )
    if pretrained and weights is not None:
        raise ValueError("vgg16_netvlad: pretrained and weights both name a file; give one of them")
    weights = weights if weights is not None else pretrained or None
    _import_sfrs()
    if weights is not None:
        return _from_file(weights, whitening, whiten)
    if whitening is not None:
        raise ValueError("vgg16_netvlad: a whitening belongs to trained weights; give weights=FILE as well")
    from sfrs.models.backbones import build_backbone
    from sfrs.models.model import Model
    from sfrs.models.network import DescriptorNetwork

    warnings.warn("vgg16_netvlad: random weights, to try the path; give weights=FILE", stacklevel=2)
    return Model(DescriptorNetwork(build_backbone("vgg16"), clusters))


def _from_file(weights, whitening, whiten):
    import sfrs

    model = sfrs.load(weights, whitening, whiten=whiten)
    backbone = model.network.backbone.name
    if backbone != "vgg16":
        raise ValueError(
            f"vgg16_netvlad: {weights} is a network on the backbone {backbone!r}; load it with sfrs.load"
        )
    return model


def _import_sfrs():
    """Make ``sfrs`` importable, from where the operators come from: installed, or built in this folder."""
    import sfrs_ext

    beside = Path(sfrs_ext.__path__[0]).parent / "python"
    if beside.is_dir() and "sfrs" not in sys.modules:
        sys.path.insert(0, str(beside))
