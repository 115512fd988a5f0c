"""Small data sets in the exact on-disk forms of the published ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pictures import picture
from scipy.io import savemat

ORIGIN = (585_000.0, 4_477_000.0)


def cells(names: Sequence[str]) -> np.ndarray:
    """A MATLAB cell array of strings, one per row, as loadmat reads the published files."""
    column = np.empty((len(names), 1), dtype=object)
    column[:, 0] = names
    return column


def write_mat(
    path: Path,
    database: Sequence[str],
    database_utm: np.ndarray,
    queries: Sequence[str],
    query_utm: np.ndarray,
    stamps: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Path:
    """``dbStruct`` with the fields of NetVLAD's specification, in their order."""
    shown = [{"utmDb": np.asarray(database_utm).T}, {"utmQ": np.asarray(query_utm).T}]
    if stamps is not None:
        shown[0]["dbTimeStamp"] = np.array([stamps[0]], dtype=np.uint32)
        shown[1]["qTimeStamp"] = np.array([stamps[1]], dtype=np.uint32)
    struct = {"whichSet": path.stem.rpartition("_")[2], "dbImageFns": cells(database), **shown[0]}
    struct |= {"qImageFns": cells(queries), **shown[1]}
    struct |= {"numImages": len(database), "numQueries": len(queries), "posDistThr": 25}
    struct |= {"posDistSqThr": 625, "nonTrivPosDistSqThr": 100}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"dbStruct": struct})
    return path


def write_pictures(folder: Path, names: Sequence[str], scenes: Sequence[int], suffix: str = "") -> None:
    for i, (name, scene) in enumerate(zip(names, scenes, strict=True)):
        file = folder / name
        file = file.with_suffix(suffix) if suffix else file
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(scene, noise=0.02 * (i % 5)).save(file)


def write_pittsburgh(
    root: Path, split: str, *, spots: int = 8, first: int = 0, query_folder: str = "queries_real"
) -> Path:
    """Panoramas 40 m apart of three views each, a query 4 m beside each; returns the .mat file."""
    database = [f"000/{first + s:06d}_pitch1_yaw{v + 1}.jpg" for s in range(spots) for v in range(3)]
    queries = [f"000/{first + s:06d}_pitch1_yaw1.jpg" for s in range(spots)]
    line = np.array(ORIGIN) + np.array([[40.0 * (first + s), 0.0] for s in range(spots)])
    write_pictures(root / "images", database, [first + s for s in range(spots) for _ in range(3)])
    write_pictures(root / query_folder, queries, [first + s for s in range(spots)])
    mat = root / "datasets" / f"pitts30k_{split}.mat"
    return write_mat(mat, database, np.repeat(line, 3, axis=0), queries, line + (4.0, 0.0))


def write_tokyo247(root: Path) -> Path:
    """Two panoramas of 12 cut-outs at one position, one 100 m away; a day, a sunset and a night query."""
    panoramas = [("03814/one", 0.0), ("03814/two", 0.0), ("03815/three", 100.0)]
    database = [f"{name}_012_{30 * tile:03d}.jpg" for name, _ in panoramas for tile in range(12)]
    utm = np.array(ORIGIN) + np.repeat([[east, 0.0] for _, east in panoramas], 12, axis=0)
    queries = [f"{i + 1:05d}.jpg" for i in range(3)]
    # Listed as .jpg, but .png on the disk.
    write_pictures(root / "images", database, np.repeat([0, 0, 2], 12), ".png")
    write_pictures(root / "query", queries, [0, 0, 0])
    return write_mat(root / "tokyo247.mat", database, utm, queries, utm[:3] + (3.0, 0.0))


def write_tokyo_tm(root: Path, split: str, *, spots: int = 6) -> Path:
    """At every spot a panorama of 2009 and one of 2013, two views each; the queries are views of 2009."""
    names, utm, stamps = [], [], []
    for spot in range(spots):
        for stamp in (200905, 201307):
            for view in range(2):
                names.append(f"{split}/spot{spot}/{stamp}/pano{spot}{stamp}_012_{180 * view:03d}.jpg")
                utm.append((ORIGIN[0] + 50.0 * spot, ORIGIN[1] + (stamp == 201307)))
                stamps.append(stamp)
    asked = [i for i, stamp in enumerate(stamps) if stamp == 200905][::2]
    write_pictures(root / "tokyoTM/images", names, [i // 4 for i in range(len(names))])
    chosen = [[values[i] for i in asked] for values in (names, utm, stamps)]
    mat = root / f"tokyoTM_{split}.mat"
    return write_mat(mat, names, np.array(utm), chosen[0], np.array(chosen[1]), (stamps, chosen[2]))


def write_msls_city(
    root: Path, city: str, *, origin: Sequence[float] = ORIGIN, spots: int = 4, part: str = "train_val"
) -> None:
    """Places 40 m apart; the last database image is a panorama, every second query of the night."""
    for role, shift in (("database", 0.0), ("query", 3.0)):
        folder = root / part / city / role
        (folder / "images").mkdir(parents=True)
        keys = [f"{city}{role[0]}{i:020d}" for i in range(spots)]
        sequence = [f"{i},{key},seq,{i}" for i, key in enumerate(keys)]
        _table(folder / "seq_info.csv", ",key,sequence_key,frame_number", sequence)
        all_but = [f"{i},{key},{i != 1 or role == 'database'}" + ",False" * 6 for i, key in enumerate(keys)]
        _table(folder / "subtask_index.csv", ",key,all,s2w,w2s,o2n,n2o,d2n,n2d", all_but)
        write_pictures(folder / "images", [f"{key}.jpg" for key in keys], range(spots))
        if part == "test":
            continue
        panorama = [i == spots - 1 and role == "database" for i in range(spots)]
        raw = [f"{i},{key},12.5,55.6,90.0,2017-06-01,{panorama[i]}" for i, key in enumerate(keys)]
        _table(folder / "raw.csv", ",key,lon,lat,ca,captured_at,pano", raw)
        head = ",key,easting,northing,unique_cluster,control_panel,night,view_direction"
        night = [role == "query" and i % 2 == 1 for i in range(spots)]
        lines = [
            f"{i},{key},{origin[0] + 40 * i + shift},{origin[1]},{i},False,{night[i]},Forward"
            for i, key in enumerate(keys)
        ]
        _table(folder / "postprocessed.csv", head, lines)


def write_gsv_city(root: Path, city: str, latitude: float, longitude: float, places: Sequence[int]) -> None:
    """Four images of every place within a few metres, of four years; places about 110 m apart."""
    lines, names = [], []
    for place in places:
        for view, (year, month) in enumerate([(2008, 5), (2019, 11), (2019, 7), (2014, 1)]):
            lat, lon = latitude + 0.001 * place, round(longitude + 0.00001 * view, 6)
            panoid = f"pano-{place}_{view}"
            lines.append(f"{place},{year},{month},45,{city},{lat!r},{lon!r},{panoid}")
            names.append(f"{city}_{place:07d}_{year}_{month:02d}_045_{lat!r}_{lon!r}_{panoid}.JPG")
    _table(root / "Dataframes" / f"{city}.csv", "place_id,year,month,northdeg,city_id,lat,lon,panoid", lines)
    write_pictures(root / "Images" / city, names, [place for place in places for _ in range(4)])


def _table(path: Path, head: str, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
