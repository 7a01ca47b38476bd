"""sweep.html and compare.html as a browser shows them: at three widths, without network, sorted by a click.

Screenshots go to the folder that the variable SCREENSHOTS names, else to build/screenshots.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml

from pipelines.sweep_page import write_page
from tests.pipelines.sweep_results_made import made

pytestmark = pytest.mark.proof  # real sweeps, and a browser at three widths

WIDTHS = (390, 500, 1200)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files",
]  # fmt: skip
FRAME = """<body style='margin:0'>
<iframe src='{page}' style='border:0;width:{width}px;height:{height}px' onload='setTimeout(() => {{
  const page = this.contentDocument, root = page.documentElement;
  const images = [...page.images].filter(one => one.complete && one.naturalWidth > 100).length;
  const order = () => [...page.querySelectorAll(".sortable tbody tr")].map(row => row.cells[0].textContent).join(" ");
  const head = page.querySelector(".sortable th:nth-child({column}) button");
  const said = [`wide ${{root.scrollWidth}} of ${{root.clientWidth}}; images ${{images}} of ${{page.images.length}}`];
  if (head) {{ head.click(); said.push("up " + order()); head.click(); said.push("down " + order()); }}
  document.title = said.join("; ") + "; title " + page.title;
}}, 500)'></iframe>"""


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@pytest.fixture
def show(browser, tmp_path):
    """Shows a page in a frame of a width (Chromium's own window is at least 500 pixels wide); returns what it says."""

    def run(page, width, *options, column=1, height=1600):
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(page=page.as_uri(), width=width, height=height, column=column))
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        size = f"--window-size={max(width, 500)},{height}"
        command = [browser, *FLAGS, profile, size, "--virtual-time-budget=5000", *options, frame.as_uri()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return re.search(r"<title>(.*?)</title>", ended.stdout)[1] if "--dump-dom" in options else ""

    return run


@pytest.fixture(scope="module")
def pages(new_place):
    """A page made by hand of 66 trials, and the pages of a real sweep."""
    place = new_place("sweep-pages")
    changes = {"splitting": {"tiers": 2, "cut": "quantiles"}, "tracking": {"enabled": False}}
    train = [{"path": "lab://instructions?count=100", "name": "lab"}]
    place.spec({**changes, "data": {"train": train, "held_out": {"fraction": 0.3}}}, "base")
    space = {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}
    sweep = {"name": "real", "base": "base.yaml", "space": space}
    (place.folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (place.folder / "runs" / "real" / "sweep.html").mkdir(parents=True)  # in the way of the first page
    blocked = place.run("sweep", "sweep.yaml")
    (place.folder / "runs" / "real" / "sweep.html").rmdir()
    place.run("sweep", "sweep.yaml")
    compared = place.run("compare", "runs/real", "--out", "compare.html")
    (place.folder / "made").mkdir()
    write_page(made(methods=("length", "ifd"), seeds=3), place.folder / "made")
    return {
        "made": place.folder / "made" / "sweep.html",
        "real": place.folder / "runs" / "real" / "sweep.html",
        "compare": place.folder / "compare.html",
        "blocked": blocked,
        "compared": compared,
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "images"), [("made", 5), ("real", 4), ("compare", 4)])
def test_the_page_fits_the_screen_and_shows_its_images(show, pages, screenshots, name, images, width):
    import matplotlib.image

    shot = screenshots / f"{name}-{width}.png"
    told = show(pages[name], width, "--dump-dom", f"--screenshot={shot}", height=4800)
    wide, client, loaded, count = map(int, re.search(r"wide (\d+) of (\d+); images (\d+) of (\d+)", told).groups())
    assert (client, wide) == (width, width)
    assert loaded == count == images
    pixels = matplotlib.image.imread(shot)[..., :3]
    assert pixels.shape[1] >= width
    assert len(np.unique((pixels * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50


def test_a_click_sorts_the_table(show, pages):
    told = show(pages["made"], 1200, "--dump-dom")
    numbers = [str(number) for number in range(1, 67)]
    assert f"up {' '.join(numbers)};" in told
    assert f"down {' '.join(reversed(numbers))};" in told
    by_method = show(pages["made"], 1200, "--dump-dom", column=4)
    first = re.search(r"up ([\d ]+);", by_method)[1].split()
    assert all(int(number) > 33 for number in first[:33])  # `ifd` comes before `length`
    compared = show(pages["compare"], 1200, "--dump-dom")
    assert "up 1 2 3; down 3 2 1;" in compared


def test_no_other_script_runs(show, pages, tmp_path):
    page = tmp_path / "changed.html"
    text = pages["made"].read_text()
    page.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"))
    assert show(page, 1200, "--dump-dom").endswith("title orders · phasetune sweep")


def test_the_page_asks_for_nothing_outside(pages):
    for name in ("made", "real", "compare"):
        text = pages[name].read_text(encoding="utf-8")
        assert re.findall(r"(?:src|href)=[\"'](?!data:|#)([^\"']+)", text) == []
        assert "@import" not in text
        assert "url(http" not in text


def test_a_page_that_cannot_be_written_costs_no_result(pages):
    assert "sweep.html could not be written" in pages["blocked"].stderr
    assert (pages["real"].parent / "sweep.json").stat().st_size > 1000
    assert pages["real"].is_file()


def test_a_real_sweep_is_told_right(pages):
    text = pages["real"].read_text()
    assert len(re.findall(r'<tr class="split">', text)) == 2
    assert text.count("was in the store") == 5
    assert "too few to tell" in text


def test_compare_says_the_same_on_the_screen(pages):
    said = pages["compared"].stdout
    assert "real trial" in said
    assert said.count(" minus real trial ") == 3
    assert "were chosen from 3 trials" in said
