"""How photographs become a data set where they do not say it themselves."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sfrs.data.photo_files import LeftOutWarning
from sfrs.data.photos import Locator, Photo, Sources, first_zone, from_name, project
from sfrs.data.places.sets import Shot, Shots
from sfrs.data.tables import PlacesError
from sfrs.runtime.errors import UserError

NAMED = 3  # photographs that a message about many of them names


@dataclass(frozen=True)
class Reading(Sources):
    """What a user says about a data set besides its path.

    Attributes:
        queries: folder of the queries, where the path is the folder of the database.
        hold_out: how a folder of photographs is split (`sfrs.data.places.hold_out`).
        frames: which frame of the database a query's is (`sfrs.data.places.frames`).
        zone: UTM zone of metres that do not say theirs; "": that of the first photograph that has one.
        skip_unplaced: leave out photographs that nothing says the place of.
        lenient: keep them, at nan, and take a folder without queries: for what needs images alone.
    """

    queries: str = ""
    hold_out: str = ""
    frames: str = ""
    zone: str = ""
    skip_unplaced: bool = False
    lenient: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.frames and (self.positions or self.track):
            raise UserError(
                "--frames says what is right without positions; leave out --positions and --track."
            )

    def given(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON holds it and ``Reading(**given)`` takes it."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


def read_shots(files: Mapping[str, Sequence[Path]], reading: Reading) -> tuple[Shots, str]:
    """Locate the images of the roles "database" and "queries", see `shots_of`."""
    locator = Locator(reading)
    photos = {role: [locator.locate(from_name(f), lenient=True) for f in files[role]] for role in files}
    return shots_of(photos, reading)


def shots_of(photos: dict[str, list[Photo]], reading: Reading) -> tuple[Shots, str]:
    """Bring the photographs of all roles into one coordinate system, and return it too.

    Raises `PlacesError` if it is not known where a photograph was taken, or it cannot be where it says.
    """
    every = [photo for of_role in photos.values() for photo in of_role]
    unplaced = [photo.file for photo in every if not photo.placed]
    if unplaced and not (reading.lenient or reading.skip_unplaced):
        raise _unplaced(unplaced, len(every))
    if unplaced:
        what = "say nowhere where they were taken"
        what = what if reading.lenient else f"that {what} are left out"
        listed = ", ".join(map(str, unplaced[:NAMED])) + (", ..." if len(unplaced) > NAMED else "")
        warnings.warn(
            f"{len(unplaced):,} of {len(every):,} photographs {what}: {listed}", LeftOutWarning, stacklevel=3
        )
    positions, system = project(every, reading.zone or first_zone(every))
    rows = iter(positions.tolist())
    shots: Shots = {}
    for role, of_role in photos.items():
        shots[role] = [
            Shot(photo.file, easting, northing, photo.panorama, photo.condition)
            for photo, (easting, northing) in zip(of_role, rows, strict=False)
            if photo.placed or reading.lenient
        ]
    return shots, system


def _unplaced(files: Sequence[Path], count: int) -> PlacesError:
    more = f" and {len(files) - 1:,} more of {count:,}" if len(files) > 1 else ""
    error = PlacesError(
        f"{files[0]}{more}: fields 1 and 2 between the @ signs of the name are not easting and northing in "
        "metres, and there is no EXIF GPS. Expected a name such as @0386531.34@6174119.45@.jpg, EXIF GPS, "
        "--positions FILE.csv or --track FILE.gpx."
    )
    error.skip = "skip_unplaced"
    return error
