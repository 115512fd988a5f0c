"""Made-up descriptors and positions of a city, for measuring mining without photographs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfrs.data.coordinates import within
from sfrs.data.neighbourhood import Neighbourhood

VIEWS = 24
"""Database images of one panorama, as in Pittsburgh."""
APART, POSITIVE, NEGATIVE = 7.0, 10.0, 25.0
"""Metres between panoramas of a street, and the paper's radii."""
STREET = 50
PLACE_SHARE, VIEW_SHARE = 0.35, 0.25
"""Of a descriptor's variance: what all images of a panorama share, and those of one view in a street."""


@dataclass(frozen=True)
class MiningProblem:
    """Descriptors ``[m, d]`` and ``[n, d]`` (unit vectors), and who is whose positive."""

    queries: Tensor
    database: Tensor
    neighbourhood: Neighbourhood

    @classmethod
    def draw(cls, queries: int, database: int, dim: int, seed: int = 0) -> "MiningProblem":
        """Panoramas along streets; a query stands within 2 m of one and looks like one of its views."""
        random = torch.Generator().manual_seed(seed)
        panorama = torch.arange(database) // VIEWS
        owner = torch.randint(database, (queries,), generator=random)
        places = torch.randn(-(-database // VIEWS), dim, generator=random).mul_(PLACE_SHARE**0.5)
        views = torch.randn(-(-database // STREET), dim, generator=random).mul_(VIEW_SHARE**0.5)

        def descriptors(images: Tensor) -> Tensor:
            drawn = torch.randn(len(images), dim, generator=random)
            drawn.mul_((1 - PLACE_SHARE - VIEW_SHARE) ** 0.5).add_(places[panorama[images]])
            view = panorama[images] // STREET * VIEWS + images % VIEWS
            return torch.nn.functional.normalize(drawn.add_(views[view % len(views)]), dim=1)

        street, along = panorama // STREET, panorama % STREET
        positions = np.stack((APART * along.numpy(), 1000.0 * street.numpy()), axis=1)
        standing = positions[owner.numpy()] + np.random.default_rng(seed).uniform(-2, 2, (queries, 2))
        near = within(standing, positions, POSITIVE)
        return cls(
            descriptors(owner),
            descriptors(torch.arange(database)),
            Neighbourhood(near, within(standing, positions, NEGATIVE), database),
        )
