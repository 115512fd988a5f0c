"""Options about photographs and where they were taken, in groups that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sfrs.commands.flags import option
from sfrs.commands.options import SKIP_BAD_IMAGES
from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from sfrs.data.photos import Sources
    from sfrs.data.places import Reading

SKIP_UNPLACED = option(
    "Leave out images that say nowhere where they were taken, and say how many.", "Coordinates", False
)


@dataclass(frozen=True)
class Coordinates:
    """What says where photographs were taken, besides names and EXIF."""

    positions: list[Path] | None = option(
        "CSV file with the columns file and easting, northing (zone) or latitude, longitude. It goes before "
        "names and EXIF.",
        "Coordinates",
        metavar="FILE.csv",
    )
    track: Path | None = option(
        "GPX track, to place photographs by the time in their EXIF where nothing else places them.",
        "Coordinates",
        metavar="FILE.gpx",
    )
    clock: str = option(
        "What the camera's clock was ahead of UTC, as +02:00 or +02:00:37, or its time zone, as "
        "Europe/Berlin. Default: as the EXIF says.",
        "Coordinates",
        "",
        metavar="+HH:MM",
    )

    def sources(self) -> Sources:
        """The same for the reader of photographs."""
        from sfrs.data.photos import Sources

        if len(self.positions or ()) > 1:
            raise UserError("--positions is given twice; only sfrs evaluate --descriptors takes two.")
        return Sources(str((self.positions or [""])[0]), str(self.track or ""), self.clock)


@dataclass(frozen=True)
class DataSaid:
    """What a data set does not say itself."""

    queries: Path | None = option(
        "Folder of the queries, where the other folder is the database.", "Data", metavar="DIR"
    )
    hold_out: str = option(
        "Split a folder of photographs into queries and database: the newest are queries, every 5th is, or "
        "areas are kept apart for training and testing.",
        "Data",
        "",
        metavar="time|area|every:5",
    )
    frames: str = option(
        "Which frame of the database is right for each query, of two videos along one way: same, a CSV file "
        "with the columns query and database, or a .npy of whole numbers. Radii are frames then.",
        "Data",
        "",
        metavar="same|FILE",
    )
    zone: str = option(
        "UTM zone of easting and northing that do not say theirs. Default: that of the first image that has "
        "one.",
        "Coordinates",
        "",
        metavar="33N",
    )
    skip_unplaced: bool = SKIP_UNPLACED

    def reading(self, coordinates: Coordinates) -> Reading:
        """The same for the readers of data sets."""
        from sfrs.data.places import Reading

        return Reading(
            **vars(coordinates.sources()),
            queries=str(self.queries or ""),
            hold_out=self.hold_out,
            frames=self.frames,
            zone=self.zone,
            skip_unplaced=self.skip_unplaced,
        )


@dataclass(frozen=True)
class DataSet(DataSaid, Coordinates):
    """What to evaluate on."""

    data: Path | None = option(
        "Folder with images/SPLIT/{database,queries}/@easting@northing@...jpg, a .mat file of Pittsburgh or "
        "Tokyo, the root of MSLS, a CSV manifest, or with --hold-out a folder of photographs."
    )
    database: Path | None = option("Folder of the database, beside --queries.", "Data", metavar="DIR")
    split: str = option("Which split of it.", default="test")
    query_shorter_side: int | None = option(
        "Resize queries otherwise than the database (Tokyo 24/7: 640).", "Images", metavar="N", min=16
    )
    skip_bad_images: bool = SKIP_BAD_IMAGES
    descriptors: tuple[Path, Path] | None = option(
        "Score saved descriptors instead of a network's: .npy files [n, dim] of database and queries, in the "
        "order of the files of --data, or with --positions twice, for database and queries, a row each: CSV, "
        ".txt of names, or .npy of metres.",
        "Data",
        metavar="DB.npy QUERIES.npy",
    )

    def path(self, reading: Reading) -> Path:
        """The data set, or the database where it is given as two folders."""
        if (self.database is None) == (self.data is None):
            raise UserError(
                "Which images? Give --data PATH, or two folders, --database DIR and --queries DIR."
            )
        if (self.database is None) == bool(reading.queries):
            raise UserError("--database and --queries are two folders of one data set; give both, or --data.")
        return self.data or self.database or Path()

    @property
    def query_size(self) -> int | Literal["same"]:
        return "same" if self.query_shorter_side is None else self.query_shorter_side
