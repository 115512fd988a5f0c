"""The page of ``sfrs serve`` in a real browser: a photo goes in, a place comes out, mistakes are told."""

import base64

import pytest
from PIL import ExifTags, Image
from served import SPOTS, build_index, photo, serving

pytest.importorskip("fastapi", reason='needs the extra "serve"')
from sfrs.retrieval.index import Index
from sfrs.web.serve.app import create_app
from sfrs.web.serve.page import page as served_page
from sfrs.web.serve.uploads import Limits

pytestmark = pytest.mark.slow

WAIT = 30_000
SEND = """([where, name, kind, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, {type: kind}));
  const event = where === "paste"
    ? new ClipboardEvent("paste", {clipboardData: files, bubbles: true})
    : new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true});
  document.getElementById("drop").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    index = Index.open(build_index(tmp_path_factory.mktemp("page")))
    with serving(create_app(index, limits=Limits(megabytes=0.2))) as client:
        yield client


@pytest.fixture
def visit(served, open_page):
    """Open the page and wait for its map."""

    def open_it(**options):
        opened = open_page(f"http://127.0.0.1:{served.port}/", **options)
        opened.page.set_default_timeout(WAIT)
        opened.page.locator("#about", has_text=f"{SPOTS} indexed photos").wait_for()
        return opened

    return open_it


def upload(page, scene: int) -> None:
    """Choose a photo of a scene and wait for its answer."""
    file = {"name": f"{scene}.jpg", "mimeType": "image/jpeg", "buffer": photo(scene)}
    page.set_input_files("#picker", file)
    page.locator(".working").wait_for(state="detached")


def send(page, where: str, data: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> None:
    page.evaluate(SEND, [where, name, kind, base64.b64encode(data).decode()])


def first_match(page) -> str:
    """File of the match that is shown beside the photo."""
    page.wait_for_selector("#answer:not([hidden])")
    return page.inner_text("#pair figure:last-child figcaption")


def test_a_photo_gives_a_place_a_map_and_matches(visit):
    opened = visit()
    page = opened.page
    upload(page, 4)
    assert page.locator("#matches .match").count() == 5
    assert "@391400.00@5840000.00" in first_match(page)
    assert page.inner_text("#where").startswith("52.6") and "391400" in page.inner_text("#place .metres")
    assert "%" in page.inner_text("#place") and " ms" in page.inner_text("#place")
    assert page.locator("#map .map-mark.map-match").count() == 5
    assert page.locator("#map .map-spread").count() == 1
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 1 + 5 + 2 and min(widths) > 0
    assert opened.problems == [] and opened.left_the_machine == []


def test_the_photos_own_gps_is_shown_where_it_has_one(visit):
    page = visit().page
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 41.0, 42.0), 3: "E", 4: (13.0, 23.0, 15.0)}
    send(page, "drop", photo(0, exif=exif))
    first_match(page)
    assert "of the photo itself" in page.inner_text("#place") and page.is_visible("#own")
    assert page.locator("#map .map-near").count() == 1
    upload(page, 1)
    assert "of the photo itself" not in page.inner_text("#place") and page.is_hidden("#own")


@pytest.mark.parametrize(
    ("host", "promise"),
    [
        ("localhost:8000", "stays on this computer"),
        ("127.8.8.8", "stays on this computer"),
        ("[::1]:8000", "stays on this computer"),
        ("192.168.1.7:8000", "goes to this server only"),
        ("photos.example", "goes to this server only"),
        ("127.0.0.1.photos.example", "goes to this server only"),
    ],
)
def test_it_promises_to_keep_photos_here_only_to_visitors_from_here(visit, host, promise):
    page = visit().page
    document = served_page()[0].decode()
    page.route(f"http://{host}/*", lambda route: route.fulfill(body=document, content_type="text/html"))
    page.goto(f"http://{host}/")
    assert promise in page.inner_text("#drop")


def test_photos_that_re_ranking_left_out_are_told(visit):
    page = visit().page

    def left_out(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"left_out": [7]})

    page.route("**/locate*", left_out)
    upload(page, 4)
    first_match(page)
    assert "1 indexed photo, gone since" in page.inner_text("#place")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_photos_can_be_dropped_and_pasted(visit, way):
    opened = visit()
    send(opened.page, way, photo(9))
    assert "@391900.00@5840000.00" in first_match(opened.page)
    assert opened.problems == []


def test_matches_are_chosen_in_the_list_and_on_the_map(visit):
    page = visit().page
    upload(page, 4)
    page.click("#matches li:nth-child(3) button")
    assert page.inner_text("#pair h2") == "Your photo and match 3"
    assert page.get_attribute("#map .map-mark.map-selected", "data-id") == "2"
    page.locator('#map .map-mark[data-id="1"]').focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#pair h2") == "Your photo and match 2"
    assert page.get_attribute("#matches li:nth-child(2) button", "aria-pressed") == "true"


def test_the_regions_that_agree_are_framed_and_can_be_changed(visit):
    page = visit().page
    upload(page, 4)
    assert page.locator("#pair .framed .frame").count() == 2
    assert "agree most" in page.inner_text("#pair > p")
    page.click("#pair .choices button:nth-child(2)")  # the top half
    assert "the top half of the match is the most alike" in page.inner_text("#pair > p")
    box = page.evaluate("""() => {
      const {x, y, width, height} = document.querySelector("#pair .frame").getBBox();
      return [x, y, width, height];
    }""")
    assert box == [0, 0, 1, 0.5]  # in the drawing's units, and the drawing covers the photo:
    drawing, image = (page.locator(f"#pair figure:first-child .framed > {part}") for part in ("svg", "img"))
    assert drawing.bounding_box() == image.bounding_box()


def test_number_of_matches_and_re_ranking_are_options(visit):
    opened = visit()
    page = opened.page
    upload(page, 4)
    page.select_option("#top", "3")
    page.locator("#matches .match").nth(3).wait_for(state="detached")
    with page.expect_response("**/locate*") as answered:
        page.check("#rerank")
    assert "rerank=regions" in answered.value.url and answered.value.status == 200
    assert opened.problems == []


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"not a picture", "image/jpeg", "no JPEG, PNG or WebP"),
        (photo(0)[:700], "image/jpeg", "cannot be decoded"),
        (b"GIF89a", "image/gif", "please take a JPEG, PNG or WebP"),
        (bytes(300_000), "image/jpeg", "0.2 MB are the limit"),
    ],
)
def test_mistakes_are_told_and_the_next_photo_works(visit, data, kind, words):
    opened = visit()
    send(opened.page, "drop", data, "<b>odd</b>", kind)
    opened.page.wait_for_selector("#status.error:not([hidden])")
    assert words in opened.page.inner_text("#status")
    assert opened.page.locator("#status b").count() == 0
    zone, switch = (opened.page.locator(name).bounding_box() for name in ("#drop", "label:has(#rerank)"))
    assert zone["height"] > 190 and zone["y"] + zone["height"] <= switch["y"]
    button = opened.page.locator("#another").bounding_box()
    assert button is None or button["y"] + button["height"] <= switch["y"]
    upload(opened.page, 2)
    assert "@391200.00" in first_match(opened.page)
    assert all("Failed to load resource" in problem or "ERR_" in problem for problem in opened.problems)


def test_a_busy_server_is_asked_again(visit):
    page = visit().page
    refusals = []

    def busy_once(route):
        if refusals:
            route.continue_()
            return
        refusals.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "busy"})

    page.route("**/locate*", busy_once)
    upload(page, 6)
    assert len(refusals) == 1 and "@391600.00" in first_match(page)


def test_a_server_that_is_gone_is_told(visit):
    page = visit().page
    page.route("**/locate*", lambda route: route.abort())
    send(page, "drop", photo(0))
    page.wait_for_selector("#status.error:not([hidden])")
    assert "Is sfrs serve still running?" in page.inner_text("#status")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(visit, dark):
    opened = visit(width=360, height=740, dark=dark)
    upload(opened.page, 4)
    first_match(opened.page)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
    assert opened.problems == []


def test_it_works_by_keyboard(visit):
    page = visit().page
    # The window in which files are chosen is the browser's own and not this page's: asked for is enough.
    page.evaluate("""document.getElementById("picker").addEventListener("click", (event) => {
      event.preventDefault();
      window.asked = true;
    })""")
    page.locator("#drop").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("window.asked")
    page.set_input_files("#picker", {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": photo(3)})
    assert "@391300.00" in first_match(page)
