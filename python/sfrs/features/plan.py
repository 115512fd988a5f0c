"""What a trunk cache holds, and in which row."""

from dataclasses import dataclass

from sfrs.features.on_the_fly import Draw


@dataclass(frozen=True)
class CachePlan:
    """Which outputs are kept: of the first images as they are, then the variants, image by image.

    Attributes:
        images: of the data set.
        variants: jittered variants of an image.
        plain: images, counted from the first, whose output as they are is kept.
        varied: images, counted from the first, whose variants are kept; at most ``plain``.
    """

    images: int
    variants: int
    plain: int
    varied: int

    @classmethod
    def within(cls, images: int, variants: int, row_bytes: int, budget: float | None) -> "CachePlan":
        """As much as ``budget`` bytes hold; images as they are come first, because mining reads them most."""
        wanted = images * (1 + variants)
        rows = wanted if budget is None else min(wanted, int(budget // row_bytes))
        plain = min(images, rows)
        return cls(images, variants, plain, (rows - plain) // variants if variants else 0)

    @property
    def rows(self) -> int:
        return self.plain + self.varied * self.variants

    @property
    def complete(self) -> bool:
        return self.rows == self.images * (1 + self.variants)

    def row(self, draw: Draw) -> int:
        """Where a draw is kept; -1: it is not. The key of a variant is its number, from 0."""
        if draw.key is None:
            return draw.image if draw.image < self.plain else -1
        return self.plain + draw.image * self.variants + draw.key if draw.image < self.varied else -1

    def draws(self, image: int) -> list[Draw]:
        """What is kept of an image."""
        variants = range(self.variants if image < self.varied else 0)
        return [Draw(image), *(Draw(image, variant) for variant in variants)]

    def blocks(self, size: int) -> list[range]:
        """The images of which something is kept, at most ``size`` together and as many draws of each."""
        parts = (range(self.varied), range(self.varied, self.plain))
        return [part[start : start + size] for part in parts for start in range(0, len(part), size)]
