"""The texts of others on the terminal: they are shown as they are, and tell neither rich nor the terminal anything."""

from __future__ import annotations

import io
import json
import warnings

import pytest
import yaml
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from components.common.errors import UserError
from components.common.rendering import encode
from components.reporting.report import write_report
from components.reporting.table import results_table
from pipelines import cli
from pipelines.screen import Screen, tracking_warnings
from pipelines.submitting import start, upload
from pipelines.terminal import Terminal, visible
from tests.components import tiny_models as tiny
from tests.components.reporting import build_run

EVIL = "a [/b] [red]c[/red] :bomb: \x1b]0;evil\x1b\\ \x9b2J"
SHOWN = r"a [/b] [red]c[/red] :bomb: \x1b]0;evil\x1b\ \x9b2J"


class Screenlike(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal() -> Terminal:
    """A terminal that is a file, 140 columns wide."""
    return Terminal(io.StringIO(), 140)


def told(terminal: Terminal) -> str:
    file = terminal.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line\nand\ttwo", "one line\nand\ttwo"),
        ("\x00\x07\x08\r\x1f\x7f", r"\x00\x07\x08\x0d\x1f\x7f"),
        ("\x80\x9b\x9d\x9f\xa0é", "\\x80\\x9b\\x9d\\x9f\xa0é"),
        ("\x1b[2J", r"\x1b[2J"),
    ],
)
def test_control_characters_are_spelled(text, expected):
    assert visible(text) == expected


def test_a_text_is_shown_as_it_is_wherever_it_stands(terminal):
    table, tree = Table(EVIL, title=EVIL), Tree(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    tree.add(EVIL)
    for shown in (EVIL, Text(EVIL), table, tree):
        terminal.print(shown, highlight=False)
    assert told(terminal).count(SHOWN) == 8
    assert visible(told(terminal)) == told(terminal)


def test_our_own_colours_and_bars_still_reach_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = Screenlike()
    terminal = Terminal(file)
    terminal.print(EVIL, style="red", highlight=False)
    assert file.getvalue() == f"\x1b[31m{SHOWN}\x1b[0m\n"
    with Progress(console=terminal, transient=True):
        pass
    assert "\x1b[?25h" in file.getvalue()  # the cursor is shown again


def test_a_bar_shows_its_label_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("pipelines.screen._PATIENCE", 0.0)
    file, events = Screenlike(), tmp_path / "events"
    with Screen(Terminal(file), events, 1).following():
        events.write_text(json.dumps({"label": EVIL, "done": 1, "total": 2, "unit": "rows"}) + "\n")
    assert SHOWN.split(r"\x1b\ ")[0] in file.getvalue()  # the column is as wide as rich takes the label to be
    assert "\x1b]" not in file.getvalue()


def test_what_steps_say_is_shown_as_it_is(terminal, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.screen._LINE_EVERY", 0.0)
    events = [
        {"warning": EVIL},
        {"step": "s", "state": "waiting", "kind": "phases", "key": "a", "holder": EVIL},
        {"step": EVIL, "state": "done", "reused": True},
        {"label": EVIL, "done": 1, "total": 0, "unit": EVIL},
    ]
    file = tmp_path / "events"
    with Screen(terminal, file, 1).following():
        file.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert told(terminal).startswith(f"warning: {SHOWN}\n  s: waiting for {SHOWN}, which makes phases/a\n")
    assert told(terminal).endswith(f"[ 1/1] {SHOWN} found in the store\n  {SHOWN}: 1 {SHOWN}\n")


def test_a_warning_of_the_tracking_is_shown_as_it_is(terminal):
    class TrackingWarning(UserWarning):
        pass

    with tracking_warnings(terminal):
        warnings.warn(EVIL, TrackingWarning, stacklevel=1)
    assert told(terminal) == f"warning: {SHOWN}\n"


def test_an_error_is_shown_as_it_is(terminal, monkeypatch):
    monkeypatch.setattr(cli, "complaints", terminal)
    tokenizer = tiny.byte_tokenizer(template="{{ raise_exception('\x1b]0;evil\x1b\\\\') }}")
    with pytest.raises(UserError) as caught:
        encode(tokenizer, [[("user", "u"), ("assistant", "a")]])
    assert cli._fail(caught.value, False) == 1
    assert r"\x1b]0;evil\x1b" in told(terminal)
    cli._fail(UserError(EVIL, EVIL), False)
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        cli._fail(error, True)
    assert f"\nerror: {SHOWN}\nremedy: {SHOWN}\n" in told(terminal)
    assert f"\nerror: ValueError: {SHOWN}\n" in told(terminal)
    assert visible(told(terminal)) == told(terminal)


def test_a_valid_spec_in_a_folder_of_any_name_is_valid(cluster_values, tmp_path, phasetune):
    folder = tmp_path / "[" / "b]"
    folder.mkdir(parents=True)
    spec = folder / "s.yaml"
    spec.write_text(yaml.safe_dump({**cluster_values, "store": str(tmp_path / "store")}))
    assert phasetune("validate", str(spec)) == (0, f"{spec} is valid: cluster\n")


def test_what_kubeflow_says_is_shown_as_it_is(cluster, server, cluster_spec, tmp_path, phasetune):
    spec = cluster_spec(store=str(tmp_path / "store"), tracking={"enabled": False})
    run = start(cluster, spec, upload(cluster, spec, True), "phasetune")
    error = f"launcher [/kfp-launcher/launch] exit 1 {EVIL}"
    server.runs[run] |= {"state": "FAILED", "error": {"message": error}}
    code, said = phasetune("status", run, "--host", server.url)
    assert (code, f"failed (launcher [/kfp-launcher/launch] exit 1 {SHOWN})" in said) == (0, True)
    code, said = phasetune("cancel", run, "--host", server.url)
    assert visible(said) == said


def test_our_brackets_and_colours_are_no_markup(terminal, tmp_path, cluster_spec):
    terminal.print(results_table(write_report(build_run.build_run(tmp_path), tmp_path / "out")))
    assert "all [95%]" in told(terminal)
    assert "\\[" not in told(terminal)
