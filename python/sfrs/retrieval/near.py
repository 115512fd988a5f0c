"""A circle on the map to which a search is confined."""

import re
from dataclasses import dataclass

import numpy as np

from sfrs.data.coordinates import to_system, zone_at
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

    def center(self, system: str) -> np.ndarray:
        """Return easting and northing of the point in the coordinate system of an index, ``[2]``.

        nan where no zone of the system reaches it. Raises `UserError` if the index's metres are of a zone
        nobody knows.
        """
        if not system:
            raise UserError(
                f"--near {self}: the positions of this index are metres of an unknown UTM zone. "
                "sfrs index --zone says which."
            )
        positions, reached = to_system([[self.latitude, self.longitude]], system)
        return positions[0] if reached == system else np.full(2, np.nan)

    def holds(self, positions: np.ndarray, system: str) -> np.ndarray:
        """Return which positions ``[n, 2]`` of a system are within the radius, bool ``[n]``."""
        return np.hypot(*(positions - self.center(system)).T) <= self.radius
