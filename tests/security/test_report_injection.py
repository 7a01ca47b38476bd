"""A report of data that somebody wrote for a browser, a template engine or a plot."""

import html.parser
import json
import re
import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from components.common.examples import write_rows
from components.reporting.report import write_report
from components.reporting.table import results_table
from tests.components.reporting import build_run as runs

EVIL = [
    "<script>fetch('//evil')</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></pre></table></main><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raise %}{{ page.__class__ }}",
    "javascript:alert(1)",
    "&lt;script&gt;<!--",
    r"$\notacommand{$ \frac",
    "[bold]x[/nope] \x1b]0;evil\x07",
]
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "div", "p", "h1", "h2", "h3", "b", "small",
    "span", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "picture", "source",
    "img", "details", "summary",
}  # fmt: skip
ATTRIBUTES = {
    "alt", "charset", "class", "content", "http-equiv", "lang", "media", "name", "open", "src", "srcset", "style",
    "width",
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its tags, its attributes, its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """The report, its page and its summary, of a run in which every text that data can set is hostile."""
    folder = tmp_path_factory.mktemp("evil")
    text = " ".join(EVIL)
    then = [
        {"method": "dpo", "data": [{"path": f"{text}.jsonl", "name": text}]},
        {"method": "grpo", "steps": 8, "data": [{"path": f"hf://{text}"}]},
    ]
    spec = runs.spec_of(
        controls=["one_off"], data={"train": [{"path": f"{text}.json", "name": text}]}, curriculum={"then": then},
        model={"path": text}, scoring={"method": "column", "column": text},
        tracking={"uri": "http://mlflow:5000", "experiment": text},
    )  # fmt: skip
    info = {"name": text, "versions": {text: text}, "machine": {"cpu": text, "gpus": [text]}}
    records = runs.build_run(folder, spec=spec, source=f"{text}.json", info=info, missing={"evaluate.one_off.2.s17"})
    for step in ("evaluate.base", "evaluate.main.3.s17", "evaluate.main.5.s17"):
        path = folder / "store/evaluations" / records.read(step).key / "examples.parquet"
        table = pq.read_table(path)
        for column in ("response", "prompt", "expected"):
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, pa.array([text] * len(table)))
        pq.write_table(table, path)
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    write_rows(
        folder / "store/phases" / records.read("train.main.4.s17").key / "pairs.parquet",
        [{"id": text, "messages": turns, "rejected": text}],
    )
    rows = [{"step": 1, "prompt": text, "completion": text, text: 1.0}]
    rollouts = folder / "store/phases" / records.read("train.main.5.s17").key / "rollouts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), rollouts)
    summary = write_report(records, folder / "out")
    return summary, (folder / "out" / "report.html").read_text()


def test_the_page_has_its_own_tags_and_attributes_only(evil):
    page = Page(evil[1])
    assert page.tags <= TAGS
    assert set(page.attributes) <= ATTRIBUTES
    assert all(value.startswith("data:image/png;base64,") for value in page.attributes["src"])
    assert all(value.startswith("background:#") for value in page.attributes["style"] if "background" in value)
    assert not [value for value in page.attributes["style"] if "(" in value]


def test_the_page_shows_the_texts_as_they_are(evil):
    words = "".join(Page(evil[1]).words)
    for text in EVIL:
        assert words.count(text[:20]) > 5
    assert "49" not in [word.strip() for word in Page(evil[1]).words]


def test_a_browser_is_told_to_load_and_run_nothing(evil):
    (policy,) = [value for value in Page(evil[1]).attributes["content"] if "default-src" in value]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = evil[1][: evil[1].index("<title>")]
    assert head.index(policy) < head.index('name="description"')  # before anything of the data


def test_the_summary_is_json_and_the_table_prints(evil):
    summary, _ = evil
    assert json.loads(json.dumps(summary)) == summary
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(results_table(summary))
    assert "main" in captured.get()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("told", [True, False])
def test_a_browser_runs_no_script_that_got_into_the_page(evil, tmp_path, told):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    text = evil[1] if told else re.sub("<meta http-equiv[^>]*>", "", evil[1])
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", "<script>document.title = 'it' + ' ran'</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert "data:image/png" in shown
    assert ("<title>it ran</title>" in shown) is not told
