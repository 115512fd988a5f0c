"""A circle on the map to which a search is confined."""

import re
from dataclasses import dataclass

import numpy as np

from sfrs.data.coordinates import in_every_zone, zone_at
from sfrs.runtime.errors import UserError

NUMBER = r"\s*([+-]?\d+(?:\.\d*)?)\s*"


@dataclass(frozen=True)
class Near:
    """The images within ``radius`` metres of a point in degrees.

    Raises `UserError` if the point is none on earth, or the radius is not positive.
    """

    latitude: float
    longitude: float
    radius: float

    def __post_init__(self) -> None:
        zone_at(self.latitude, self.longitude)  # raises where there is no such point
        if not 0 < self.radius < np.inf:
            raise UserError(f"The radius of {self} is {self.radius:g} m; expected more than 0.")

    def __str__(self) -> str:
        return f"{self.latitude:g},{self.longitude:g},{self.radius:g}"

    @classmethod
    def parse(cls, text: str) -> "Near":
        """Read ``LAT,LON,RADIUS``."""
        found = re.fullmatch(",".join([NUMBER] * 3), text)
        if found is None:
            raise UserError(
                f"--near is {text!r}; expected LAT,LON,RADIUS in degrees and metres, as 55.7,13.19,500."
            )
        return cls(*map(float, found.groups()))

    def centers(self, system: str) -> np.ndarray:
        """Return easting and northing of the point in each zone that reaches it of the coordinate system of
        an index, ``[zones, 2]``.

        Raises `UserError` if the index's metres are of a zone nobody knows.
        """
        if not system:
            raise UserError(
                f"--near {self}: the positions of this index are metres of an unknown UTM zone. "
                "sfrs index --zone says which."
            )
        return in_every_zone(self.latitude, self.longitude, system)

    def holds(self, positions: np.ndarray, system: str) -> np.ndarray:
        """Return which positions ``[n, 2]`` of a system are within the radius, bool ``[n]``."""
        held = np.zeros(len(positions), dtype=bool)
        for center in self.centers(system):
            held |= np.hypot(*(positions - center).T) <= self.radius
        return held
