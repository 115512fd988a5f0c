"""Options about photographs and where they were taken, in groups that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfrs.commands.options import SkipBadImages, option
from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from sfrs.data.photos import Sources
    from sfrs.data.places import Reading

Positions = Annotated[
    Path | None,
    option(
        "--positions",
        "CSV file with the columns file and easting, northing (zone) or latitude, longitude. It goes before "
        "names and EXIF.",
        "Coordinates",
        metavar="FILE.csv",
    ),
]
Track = Annotated[
    Path | None,
    option(
        "--track",
        "GPX track, to place photographs by the time in their EXIF where nothing else places them.",
        "Coordinates",
        metavar="FILE.gpx",
    ),
]
Clock = Annotated[
    str,
    option(
        "--clock",
        "What the camera's clock was ahead of UTC, as +02:00 or +02:00:37, or its time zone, as "
        "Europe/Berlin. Default: as the EXIF says.",
        "Coordinates",
        metavar="+HH:MM",
    ),
]
Zone = Annotated[
    str,
    option(
        "--zone",
        "UTM zone of easting and northing that do not say theirs. Default: that of the first image that has "
        "one.",
        "Coordinates",
        metavar="33N",
    ),
]
SkipUnplaced = Annotated[
    bool,
    option(
        "--skip-unplaced",
        "Leave out images that say nowhere where they were taken, and say how many.",
        "Coordinates",
    ),
]
HoldOut = Annotated[
    str,
    option(
        "--hold-out",
        "Split a folder of photographs into queries and database: the newest are queries, every 5th is, or "
        "areas are kept apart for training and testing.",
        "Data",
        metavar="time|area|every:5",
    ),
]


@dataclass(frozen=True)
class Coordinates:
    """What says where photographs were taken, besides names and EXIF."""

    positions: Positions = None
    track: Track = None
    clock: Clock = ""

    def sources(self) -> Sources:
        """The same for the reader of photographs."""
        from sfrs.data.photos import Sources

        return Sources(str(self.positions or ""), str(self.track or ""), self.clock)


Queries = Annotated[
    Path | None,
    option(
        "--queries", "Folder of the queries, where the other folder is the database.", "Data", metavar="DIR"
    ),
]
Frames = Annotated[
    str,
    option(
        "--frames",
        "Which frame of the database is right for each query, of two videos along one way: same, a CSV file "
        "with the columns query and database, or a .npy of whole numbers. Radii are frames then.",
        "Data",
        metavar="same|FILE",
    ),
]


@dataclass(frozen=True)
class DataSaid:
    """What a data set does not say itself."""

    queries: Queries = None
    hold_out: HoldOut = ""
    frames: Frames = ""
    zone: Zone = ""
    skip_unplaced: SkipUnplaced = False

    def reading(self, coordinates: Coordinates) -> Reading:
        """The same for the readers of data sets."""
        from sfrs.data.places import Reading

        return Reading(
            str(self.queries or ""),
            self.hold_out,
            self.frames,
            **vars(coordinates.sources()),
            zone=self.zone,
            skip_unplaced=self.skip_unplaced,
        )


@dataclass(frozen=True)
class DataSet(DataSaid):
    """What to evaluate on."""

    data: Annotated[
        Path | None,
        option(
            "--data",
            "Folder with images/SPLIT/{database,queries}/@easting@northing@...jpg, a .mat file of "
            "Pittsburgh or Tokyo, the root of MSLS, a CSV manifest, or with --hold-out a folder of "
            "photographs.",
        ),
    ] = None
    database: Annotated[
        Path | None,
        option("--database", "Folder of the database, beside --queries.", "Data", metavar="DIR"),
    ] = None
    split: Annotated[str, typer.Option("--split", help="Which split of it.")] = "test"
    query_shorter_side: Annotated[
        int | None,
        option(
            "--query-shorter-side",
            "Resize queries otherwise than the database (Tokyo 24/7: 640).",
            "Images",
            metavar="N",
            min=16,
        ),
    ] = None
    skip_bad_images: SkipBadImages = False

    descriptors: Annotated[
        tuple[Path, Path] | None,
        option(
            "--descriptors",
            "Score saved descriptors instead of a network's: .npy files [n, dim] of database and queries, "
            "in the order of the files of --data or of the two --positions.",
            "Data",
            metavar="DB.npy QUERIES.npy",
        ),
    ] = None
    positions: Annotated[
        list[Path] | None,
        option(
            "--positions",
            "CSV file with the columns file and easting, northing (zone) or latitude, longitude. With "
            "--descriptors twice, for database and queries, a row each: CSV, .txt of names, or .npy of "
            "metres.",
            "Coordinates",
            metavar="FILE",
        ),
    ] = None
    track: Track = None
    clock: Clock = ""

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

    def coordinates(self) -> Coordinates:
        """What says where images were taken, as other commands take it."""
        if self.positions and len(self.positions) > 1 and self.descriptors is None:
            raise UserError("--positions is given twice; that is for --descriptors, whose rows it places.")
        table = self.positions[0] if self.positions and self.descriptors is None else None
        return Coordinates(table, self.track, self.clock)
