"""What ``--trunk-cache`` says."""

import re
from dataclasses import dataclass

PLACES = ("ram", "gpu", "disk", "off")


@dataclass(frozen=True)
class CacheSpec:
    """Where trunk outputs are kept, and how many jittered variants of every training image.

    As text: ``ram``, ``gpu``, ``disk`` or ``off``, and ``,jitter=N`` behind it; ``jitter=N`` alone is in
    memory.
    """

    place: str = "ram"
    variants: int = 0

    @classmethod
    def parse(cls, text: str) -> "CacheSpec":
        """From its text. Raises `ValueError` saying what was expected."""
        found = re.fullmatch(rf"({'|'.join(PLACES)})?(?:(?(1),)jitter=(\d+))?", text.replace(" ", ""))
        if not text or found is None or found[2] == "0" or (found[1] == "off" and found[2]):
            raise ValueError(
                f"expected one of {', '.join(PLACES)}, the first three also with ,jitter=N (N > 0)"
            )
        return cls(found[1] or "ram", int(found[2] or 0))
