"""A folder of tiny images with positions in their names, and ``sfrs train`` options for it."""

from pathlib import Path

from pictures import picture

OPTIONS = (
    "--backbone tiny --clusters 4 --height 48 --width 64 --init-images 12 --init-features 200 --device cpu "
    "--generations 2 --epochs 1,2 --refresh-every 7 --tuple-negatives 3 --negative-pool 9 --workers 1 "
    "--difficult-positives 2 --positive-pool 3 --rerank-neighbours 4 --learning-rate 0.01 --temperature 0.3 "
    "--log-every 1"
).split()


def write_town(folder: Path, train: int = 11, val: int = 6) -> Path:
    """Queries to train with 100 m apart, each with 1 to 3 database images; few negatives show the same."""
    for split, first, scenes in (("train", 0, train), ("val", 100, val)):
        for scene in range(first, first + scenes):
            for role, views in (("database", 1 + scene % 3), ("queries", 1)):
                images = folder / "images" / split / role
                images.mkdir(parents=True, exist_ok=True)
                for view in range(views):
                    name = f"@{500000 + 100 * scene + view}@{4000000 + (role == 'queries')}@{view}@.png"
                    picture(scene % 4, noise=0.1 + 0.1 * (scene // 4 % 5) + 0.1 * view).save(images / name)
    return folder
