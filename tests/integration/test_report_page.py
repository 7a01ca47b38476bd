"""The report as a browser shows it, without network, on a telephone and on a desk."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip
PROBE = (
    "<script>addEventListener('load', () => { const e = document.documentElement;"
    " document.title = `wide ${e.scrollWidth} of ${e.clientWidth}; images ${[...document.images]"
    ".filter(i => i.complete && i.naturalWidth > 100).length} of ${document.images.length}`; })</script>"
)


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def page(full):
    return full.folder / "runs" / "small" / "report.html"


@pytest.fixture
def show(browser, tmp_path):
    """Runs the browser on a page at a width."""

    def run(page, width, *options):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [browser, *FLAGS, profile, f"--window-size={width},1600", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    return run


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_shows_something(show, page, tmp_path, width):
    import matplotlib.image

    show(page, width, f"--screenshot={tmp_path / 'page.png'}")
    pixels = matplotlib.image.imread(tmp_path / "page.png")
    assert pixels.shape[1] >= width
    colours = np.unique((pixels[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)
    assert len(colours) > 50


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_the_screen_and_shows_its_images(show, page, tmp_path, width):
    """Chromium's own window is at least 500 pixels wide, so the page is put into a frame of the width."""
    probed = tmp_path / "probed.html"
    allowed = re.sub("<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))  # the page forbids every script
    probed.write_text(allowed + PROBE, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe src='probed.html' style='border:0;width:{width}px;height:1500px' onload='setTimeout(() =>"
        " document.title = this.contentDocument.title, 300)'></iframe>",
        encoding="utf-8",
    )
    dumped = show(frame, 1400, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    wide, client, loaded, images = map(int, re.search(r"wide (\d+) of (\d+); images (\d+) of (\d+)", dumped).groups())
    assert client == width
    assert wide <= width
    assert loaded == images >= 5


def test_the_page_asks_for_nothing_outside(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=[\"'](?!data:|#)([^\"']+)", text) == []
    assert "@import" not in text
    assert "url(http" not in text
