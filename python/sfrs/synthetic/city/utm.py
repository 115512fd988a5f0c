"""Latitude and longitude of UTM coordinates, for the fields of image names that carry them."""

from __future__ import annotations

import numpy as np

_A, _F, _SCALE, _FALSE_EASTING = 6_378_137.0, 1 / 298.257223563, 0.9996, 500_000.0  # WGS 84


def to_latlon(easting: np.ndarray, northing: np.ndarray, zone: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of UTM metres in a zone of the northern hemisphere; Krüger's series to third order (< 1 mm)."""
    n = _F / (2 - _F)
    radius = _A / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    beta = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    delta = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    xi = np.asarray(northing, dtype=np.float64) / (_SCALE * radius)
    eta = (np.asarray(easting, dtype=np.float64) - _FALSE_EASTING) / (_SCALE * radius)
    xi0, eta0 = xi.copy(), eta.copy()
    for j, b in enumerate(beta, start=1):
        xi0 -= b * np.sin(2 * j * xi) * np.cosh(2 * j * eta)
        eta0 -= b * np.cos(2 * j * xi) * np.sinh(2 * j * eta)
    conformal = np.arcsin(np.sin(xi0) / np.cosh(eta0))
    latitude = conformal + sum(d * np.sin(2 * j * conformal) for j, d in enumerate(delta, start=1))
    longitude = np.radians(zone * 6 - 183) + np.arctan2(np.sinh(eta0), np.cos(xi0))
    return np.degrees(latitude), np.degrees(longitude)
