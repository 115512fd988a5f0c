"""Pages in headless Chromium, and everything they did that they should not have."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = ("file:", "data:", "blob:", "about:", "http://127.0.0.1", "http://localhost")


@dataclass
class Opened:
    """A page and what came to light while it was open.

    Attributes:
        page: Playwright's page.
        problems: errors and warnings on the console, and exceptions nobody caught.
        requests: addresses it asked for; none but local ones is let through.
    """

    page: object
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def left_the_machine(self) -> list[str]:
        return [address for address in self.requests if not address.startswith(LOCAL)]

    def watch(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.route("**/*", self._let_through)

    def _said(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _let_through(self, route) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            route.abort()


@contextmanager
def chromium() -> Iterator[Callable[..., Opened]]:
    """Start Chromium; yields ``open_page(address, width=1280, height=900, dark=False, **options)``.

    ``options`` are those of Playwright's ``new_context`` (``has_touch``, ``accept_downloads``, ...). Skips
    the test where there is no Chromium or no Playwright. Playwright keeps an event loop on this thread as
    long as the browser is open: call no ``asyncio.run`` meanwhile.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: no chromium on the PATH (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))

        def open_page(address: str, width: int = 1280, height: int = 900, dark: bool = False, **options):
            scheme = "dark" if dark else "light"
            viewport = {"width": width, "height": height}
            context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)
            opened = Opened(context.new_page())
            opened.watch()
            opened.page.goto(address)
            return opened

        try:
            yield open_page
        finally:
            browser.close()
