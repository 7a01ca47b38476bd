"""The child that judges: its limits, its end, and what it is not told."""

import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from components.common.errors import UserError
from components.common.judging import Judge, judge


@pytest.fixture
def child():
    found = Judge("boxed_math", seconds=1)
    yield found
    found.close()


def children(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in process.children() if "components.common.judging_process" in one.cmdline()]


def own(found: Judge) -> psutil.Process:
    """The process of a judge that has been started."""
    return psutil.Process(found._process.pid)


def test_a_limit_ends_the_child_and_the_next_has_a_new_one(child):
    assert child.ask(r"\frac{4}{2}", "2") is True
    before = own(child)
    assert child.ask("9^{9^{9^9}}", "2") is False
    assert not before.is_running()
    assert child.ask(r"\frac{6}{3}", "2") is True


def test_memory_is_bounded():
    response = "[" + ",".join(["{}"] * 300_000) + "]"  # 1 MB of text, 20 MB of dictionaries
    small, usual = Judge("json_schema", memory=10 << 20), Judge("json_schema")
    assert [small.ask(response, "true"), small.ask("{}", "true"), usual.ask(response, "true")] == [False, True, True]
    small.close()
    usual.close()


def test_a_child_that_died_between_two_questions_is_replaced(child):
    assert child.ask(r"\frac{4}{2}", "2") is True
    process = own(child)
    process.kill()
    process.wait()
    assert child.ask(r"\frac{4}{2}", "2") is True


def test_many_threads_get_each_their_own_verdict(child):
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda number: child.ask(str(number), rf"\frac{{{2 * number}}}{{2}}"), range(40)))
        wrong = list(pool.map(lambda number: child.ask(str(number + 1), rf"\frac{{{2 * number}}}{{2}}"), range(40)))
    assert all(verdicts) and not any(wrong)


def _in_a_fork(pipe) -> None:
    pipe.send(judge("boxed_math").ask(r"\frac{9}{3}", "3"))
    pipe.send(judge("boxed_math")._process.pid)


@pytest.mark.filterwarnings("ignore:This process")  # it says that forking with threads is dangerous, which is the point
def test_a_forked_process_has_a_child_of_its_own():
    assert judge("boxed_math").ask(r"\frac{4}{2}", "2") is True
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    fork = context.Process(target=_in_a_fork, args=(there,))
    fork.start()
    assert here.recv() is True
    assert here.recv() != judge("boxed_math")._process.pid
    fork.join(20)
    assert judge("boxed_math").ask(r"\frac{8}{2}", "4") is True


@pytest.mark.timeout(60)
def test_the_child_ends_with_a_killed_parent():
    code = (
        "import time\nfrom components.common.judging import Judge\nfound = Judge('json_schema')\n"
        "found.start()\nprint('started', flush=True)\ntime.sleep(60)"
    )
    parent = psutil.Popen([sys.executable, "-c", code], stdout=-1)
    assert parent.stdout.readline() == b"started\n"
    (left,) = children(parent)
    parent.kill()
    parent.wait()
    psutil.wait_procs([left], timeout=30)
    assert not left.is_running()


def test_the_child_is_told_no_secret(child, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    child.start()
    told = own(child).environ()
    assert "AWS_SECRET_ACCESS_KEY" not in told
    assert len(told) <= 12  # what it is told is listed, not what it is not told
    assert told["PYTHONHASHSEED"] == "0"


def test_a_child_that_cannot_load_is_an_error_and_no_verdict(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="ended while it loaded"):
        Judge("boxed_math").ask("1", "2")


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    (tmp_path / "langdetect.py").write_text("raise ModuleNotFoundError('no', name='langdetect')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path)]))
    with pytest.raises(UserError, match="langdetect is not installed") as caught:
        Judge("ifeval").ask("a", "b")
    assert "phasetune[ifeval]" in caught.value.remedy
