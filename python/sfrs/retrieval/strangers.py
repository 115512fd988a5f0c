"""Pictures that were taken at none of an index's places: streets of a city that does not exist.

They are 24 queries of ``sfrs city --size small --seed 7``. How similar an index finds them to its own
photographs is the measure of a similarity that means nothing there, whatever the network.
"""

from importlib.resources import files

from PIL import Image

WIDTH, HEIGHT = 160, 128


def strangers() -> list[Image.Image]:
    """Return the pictures, RGB."""
    with files("sfrs.retrieval").joinpath("strangers.jpg").open("rb") as file:
        sheet = Image.open(file).convert("RGB")
    corners = [(x, y) for y in range(0, sheet.height, HEIGHT) for x in range(0, sheet.width, WIDTH)]
    return [sheet.crop((x, y, x + WIDTH, y + HEIGHT)) for x, y in corners]
