"""A real browser: Debian's Chromium where it is installed, else the one that `playwright install chromium` brings."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

PATIENCE = 120_000
"""Milliseconds to wait for what a page shows: on a machine that runs two halves of the tests, a page may take long."""
LOADS = (10_000, 15_000, 20_000, 30_000, 45_000, PATIENCE)
"""Milliseconds after which a page that shows nothing is loaded again."""
QUIET = [
    "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-http2",
]  # fmt: skip
"""Chromium ends the requests of an HTTP/2 connection, not those of HTTP/1.1, whenever the machine's network changes, as it does
when Docker makes or removes a network for another test's stack."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run it until the block ends."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET + as_root)
        yield browser
        browser.close()


def visit(page: Page, address: str, shown: Locator) -> None:
    """Load an address until the page shows something.

    Chromium also drops a connection that it is just making when the machine's network changes: the page stays empty.

    Raises:
        Error: The last load failed, or showed nothing.
    """
    for number, patience in enumerate(LOADS, 1):
        try:
            page.goto(address, timeout=patience)
            shown.wait_for(timeout=patience)
        except Error:
            if number == len(LOADS):
                raise
        else:
            return
