"""Data sets whose images are the frames of two videos along one way: Gardens Point, Nordland, SPED, ...

What is right is said by frame instead of by position: the easting of a database image is its number, that of
a query the number of the frame of the database that shows the same place, and "metres" are frames. Queries
of which no frame is known lie aside, farther than any radius that tells frames apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfrs.data.places.sets import Shot, Shots
from sfrs.data.tables import PlacesError, read_npy, table_rows

SAME = "same"  # frame i of the queries is frame i of the database


def frame_shots(files: Mapping[str, Sequence[Path]], frames: str) -> Shots:
    """Place the images of the roles by frame, in the order of the files.

    ``frames`` is "same"; or a CSV file with the columns query and database, numbers from 0 or names of files;
    or a ``.npy`` of whole numbers, ``[m]`` (the database's frame of each query) or ``[n, 2]`` (query,
    database). Queries that are not listed, or with -1, have no right answer.
    """
    database, queries = files["database"], files["queries"]
    if frames == SAME:
        if len(database) != len(queries):
            raise PlacesError(
                f"--frames same: {len(queries)} queries and {len(database)} database images; expected as "
                "many."
            )
        pairs = {i: i for i in range(len(queries))}
    elif Path(frames).suffix.lower() == ".npy":
        pairs = _array_pairs(Path(frames), len(queries), len(database))
    else:
        pairs = _table_pairs(Path(frames), queries, database)
    of_query = [pairs.get(i, -1) for i in range(len(queries))]
    aside = -10.0 * max(1_000, len(database))
    return {
        "database": [Shot(file, float(i), 0.0) for i, file in enumerate(database)],
        "queries": [
            Shot(file, float(i), 0.0) if i >= 0 else Shot(file, 0.0, aside)
            for file, i in zip(queries, of_query, strict=True)
        ],
    }


def _array_pairs(path: Path, queries: int, database: int) -> dict[int, int]:
    array = read_npy(path)
    if array.dtype.kind not in "iu" or not (array.shape == (queries,) or array.shape[1:] == (2,)):
        raise PlacesError(
            f"{path}: {list(array.shape)} {array.dtype}; expected whole numbers, [{queries}] frames of the "
            "database or [n, 2] pairs of query and database."
        )
    pairs = list(enumerate(array.tolist())) if array.ndim == 1 else array.tolist()
    for query, frame in pairs:
        if not (0 <= query < queries and -1 <= frame < database):
            raise PlacesError(
                f"{path}: query {query}, database {frame}; there are {queries} queries and {database} "
                "database images."
            )
    return _once(str(path), pairs)


def _table_pairs(path: Path, queries: Sequence[Path], database: Sequence[Path]) -> dict[int, int]:
    numbers = [{file.name: i for i, file in enumerate(files)} for files in (queries, database)]
    pairs = []
    for where, line in table_rows(path, ("query", "database")):
        pair = []
        for column, known in zip(("query", "database"), numbers, strict=True):
            text = (line[column] or "").strip()
            number = int(text) if text.lstrip("-").isdecimal() else known.get(Path(text).name, len(known))
            if not (-1 if column == "database" else 0) <= number < len(known):
                raise PlacesError(
                    f"{where}: {column} is {text!r}; expected one of {len(known)} frames or names."
                )
            pair.append(number)
        pairs.append(pair)
    return _once(str(path), pairs)


def _once(where: str, pairs: Sequence[Sequence[int]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for query, frame in pairs:
        if found.setdefault(query, frame) != frame:
            raise PlacesError(
                f"{where}: query {query} has the frames {found[query]} and {frame}; expected one."
            )
    return found
