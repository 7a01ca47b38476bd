"""What the user sees while a step waits for another process."""

import io
import json

from components.common.lease import describe
from pipelines.screen import Screen
from pipelines.terminal import Terminal


def test_a_step_that_waits_says_for_whom(tmp_path):
    shown = io.StringIO()
    events = tmp_path / "events"
    holder = describe({"pid": 123, "host": "machine", "run": "other-1"})
    said = {"step": "train.main.1.s1", "state": "waiting", "kind": "phases", "key": "a" * 32, "holder": holder}
    with Screen(Terminal(shown, 200), events, 1).following():
        events.write_text(json.dumps(said) + "\n")
    assert shown.getvalue() == (
        "  train.main.1.s1: waiting for process 123 on machine, run other-1, which makes phases/aaaaaaaaaaaa\n"
    )
