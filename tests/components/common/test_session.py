"""Two sessions for all tests here, each held by a driver in a process of its own, which the last test kills.

One forks its calls; in the other an import says that CUDA has started, so that it makes new programs of them.
"""

import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import components
from components.common.errors import DataError, SpecError, UserError
from components.common.launcher import SESSION, StepFailed, _exchange, launch, session

DRIVER = """
import json, os, sys
from pathlib import Path
from components.common.launcher import session
with session(Path(sys.argv[1])):
    print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(("PHASETUNE_", "RAY_"))}), flush=True)
    sys.stdin.read()
"""
TARGETS = """
import os, sys, time
from pathlib import Path
from components.common.errors import DataError

class Own(DataError):
    pass

def echo(**values): return values
def shapes(): return {1: (1, 2), "nested": [{"a": None}]}
def pid(): return os.getpid()
def modules(): return sorted(sys.modules)
def place(): return [os.getcwd(), os.environ.get("ANSWER")]
def refuse(): raise DataError("too few rows", "add some")
def refuse_own(): raise Own("too few rows", "add some")
def fail(): raise KeyError("x")
def leave(): sys.exit(3)
def crash(): os._exit(1)
def not_json(): return object()
def full(): raise OSError(28, "No space left on device")
def interrupt(): raise KeyboardInterrupt
def say(): print("heard"); print("also", file=sys.stderr); os.system("echo from a shell")
def sleep(file): Path(file).write_text(str(os.getpid())); time.sleep(600)
def long(size): return "x" * size
"""


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """A folder with functions to call, which a `sitecustomize` puts into the package in the session's process."""
    folder = tmp_path_factory.mktemp("more")
    (folder / "targets_of_tests.py").write_text(TARGETS)
    (folder / "sitecustomize.py").write_text(f"import components; components.__path__.append({str(folder)!r})\n")
    components.__path__.append(str(folder))
    yield folder
    components.__path__.remove(str(folder))
    sys.modules.pop("components.targets_of_tests", None)


def driver(folder, logs):
    """A driver's process, with the variables that its steps get as `variables`."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(logs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    process.variables = json.loads(process.stdout.readline())
    return process


@pytest.fixture(scope="module")
def forking(more, tmp_path_factory):
    process = driver(more, tmp_path_factory.mktemp("logs"))
    yield process
    process.communicate(timeout=40)


@pytest.fixture(scope="module")
def afresh(more, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "sitecustomize.py").write_text((more / "sitecustomize.py").read_text())
    # peft imports it where it is there. The real one asks the GPU what it can do, which starts CUDA; of a fork of the
    # process that has started it, torch says that it has not.
    (folder / "bitsandbytes.py").write_text(
        "import os, torch; PID = os.getpid(); torch.cuda.is_initialized = lambda: os.getpid() == PID"
    )
    process = driver(folder, tmp_path_factory.mktemp("logs"))
    yield process
    process.communicate(timeout=40)


@pytest.fixture(params=["here", "forking", "afresh"])
def anywhere(request, more, monkeypatch):
    """The same test without a session and with each."""
    if request.param != "here":
        for name, value in request.getfixturevalue(request.param).variables.items():
            monkeypatch.setenv(name, value)
    return request.param


@pytest.fixture(params=["forking", "afresh"])
def inside(request, monkeypatch):
    process = request.getfixturevalue(request.param)
    for name, value in process.variables.items():
        monkeypatch.setenv(name, value)
    return process


def run(name, **arguments):
    return launch(f"components.targets_of_tests:{name}", **arguments)[0]


# --- the same in every place -----------------------------------------------------------------------------------------


def test_values_go_and_come_as_json(anywhere):
    assert run("echo", a=(1, 2), b={"c": None}, d=0.1) == {"a": [1, 2], "b": {"c": None}, "d": 0.1}
    assert run("shapes") == {"1": [1, 2], "nested": [{"a": None}]}


def test_a_time_comes_with_the_result(anywhere):
    before = time.time()
    assert before <= launch("components.targets_of_tests:pid")[1] <= time.time()


def test_the_users_errors_keep_type_message_and_remedy(anywhere):
    with pytest.raises(DataError) as caught:
        run("refuse")
    assert (type(caught.value), caught.value.message, caught.value.remedy) == (DataError, "too few rows", "add some")
    with pytest.raises(SpecError, match="there is no folder"):
        launch("components.common.spec_file:resolve_model", path="a/b/c", folder="/")


def test_an_error_that_only_its_module_knows_is_still_the_users(anywhere):
    with pytest.raises(UserError, match="too few rows"):
        run("refuse_own")


def test_a_full_disk_is_the_users_to_mend(anywhere):
    with pytest.raises(UserError, match="disk is full"):
        run("full")


def test_other_errors_carry_the_traceback(anywhere):
    with pytest.raises(StepFailed, match=r"KeyError: 'x'\nTraceback(.|\n)*in fail"):
        run("fail")


@pytest.mark.parametrize(("name", "reason"), [("leave", "SystemExit: 3"), ("not_json", "not JSON serializable")])
def test_leaving_and_results_that_are_no_json_are_failures(anywhere, name, reason):
    with pytest.raises(StepFailed, match=reason):
        run(name)


def test_an_interruption_is_one_for_the_caller_too(anywhere):
    with pytest.raises(KeyboardInterrupt):
        run("interrupt")


@pytest.mark.parametrize(
    "target", ["os:getpid", "subprocess:run", "componentsx.a:b", "pipelines_.a:b", ":eval", "eval"]
)
def test_only_our_own_functions_are_called(anywhere, target):
    with pytest.raises(StepFailed, match="is not ours to call"):
        launch(target)


def test_what_the_function_says_goes_to_the_callers_output(anywhere, capfd):
    run("say")
    assert capfd.readouterr().out.splitlines() == ["heard", "from a shell"] or anywhere == "here"


def test_the_function_runs_in_the_callers_folder_and_environment(anywhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSWER", "42")
    assert run("place") == [str(tmp_path), "42"]
    monkeypatch.delenv("ANSWER")
    assert run("place") == [str(tmp_path), None]


def test_long_requests_and_answers_arrive_whole(anywhere):
    assert run("echo", text="é" * 3_000_000) == {"text": "é" * 3_000_000}
    assert len(run("long", size=3_000_000)) == 3_000_000


# --- the session -----------------------------------------------------------------------------------------------------


def test_every_call_has_a_process_of_its_own(inside):
    assert len({run("pid"), run("pid"), os.getpid()}) == 3


@pytest.mark.parametrize(("where", "warm"), [("forking", True), ("afresh", False)])
def test_where_cuda_has_started_a_call_is_a_new_program(request, monkeypatch, where, warm):
    for name, value in request.getfixturevalue(where).variables.items():
        monkeypatch.setenv(name, value)
    assert ("torch" in run("modules")) is warm


def test_errors_are_heard_too(inside, capfd):
    run("say")
    assert capfd.readouterr().err == "also\n"


@pytest.mark.timeout(60)  # that it ends at all; unguarded it would take minutes or never end
def test_a_crash_is_a_failure_at_once_and_the_session_lives_on(inside):
    run("pid")
    with pytest.raises(StepFailed, match="was killed; was there enough memory"):
        run("crash")
    assert run("pid")


def test_calls_run_at_the_same_time(inside):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: run("echo", n=n)["n"], range(8))) == list(range(8))


def test_a_caller_whose_folder_is_gone_is_told(inside, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr("pathlib.Path.cwd", lambda: tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StepFailed, match="the working directory is gone"):
        run("pid")
    monkeypatch.undo()


@pytest.mark.parametrize("message", [b"", b"nonsense", b"{}", b'{"op": "ray"}', b'{"op": "call"}'])
def test_a_caller_that_breaks_off_does_not_end_the_session(inside, message):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SESSION])
        connection.sendall(message)
    assert run("pid")


def test_ended_calls_leave_no_processes(inside):
    run("pid")
    serving = psutil.Process(inside.pid).children()[0]
    until = time.monotonic() + 5
    while serving.children() and time.monotonic() < until:
        time.sleep(0.05)
    assert [child.status() for child in serving.children()] == []


def test_a_session_that_has_ended_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setenv(SESSION, str(tmp_path / "nothing"))
    with pytest.raises(StepFailed, match="was killed"):
        launch("components.common.digests:seed_for", seed=1, purpose="x")


def test_a_session_puts_everything_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    (tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), session(tmp_path / "logs"):
        place = Path(os.environ[SESSION]).parent
        assert place.stat().st_mode & 0o077 == 0
        raise ZeroDivisionError
    assert dict(os.environ) == before
    assert not place.exists()


# --- Ray, and the end of all -----------------------------------------------------------------------------------------


def alive(processes):
    """The processes that still do something: one whose parent has ended may wait for ever to be taken note of."""
    left = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.NoSuchProcess:
            continue
    return left


JOINS = """
import sys, ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.1", logging_level=50)
print("in:", ray.get(ray.remote(lambda: 1).remote()))
"""


@pytest.mark.proof
def test_ray_wants_the_token_of_its_own_run(tmp_path):
    """Another user of the machine reaches its ports, and is let in neither with another token nor without one."""
    with session(tmp_path / "logs"):
        variables = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "PHASETUNE_"))}
        address = json.loads(_exchange(os.environ[SESSION], {"op": "ray", "environment": variables}, []))["address"]
        others = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        others["HOME"] = str(tmp_path)
        for changed, let_in in [
            ({"RAY_AUTH_MODE": "disabled"}, False),
            ({"RAY_AUTH_TOKEN": "f" * 64}, False),
            ({"RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}, True),
        ]:
            command = [sys.executable, "-c", JOINS, address]
            done = subprocess.run(command, env={**others, **changed}, capture_output=True, text=True, timeout=120)
            assert ("in: 1" in done.stdout) == let_in, done.stdout + done.stderr


def test_ray_listens_on_loopback_only_and_nothing_outlives_a_killed_driver(inside, tmp_path):
    launch("components.common.launcher:connect_ray")
    launch("components.common.launcher:connect_ray")
    file = tmp_path / "pid"
    failed = []

    def wait():
        with pytest.raises(StepFailed):
            run("sleep", file=str(file))
        failed.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not file.exists() or not file.read_text():
        time.sleep(0.02)

    descendants = psutil.Process(inside.pid).children(recursive=True)
    names = [process.name() for process in descendants]
    assert int(file.read_text()) in {process.pid for process in descendants}
    assert (names.count("gcs_server"), names.count("raylet")) == (1, 1)
    # Without `--minimal` it would serve jobs and logs over HTTP.
    commands = [one.as_dict(["cmdline"])["cmdline"] or [] for one in descendants]
    [agent] = [part for one in commands for part in one if part.startswith("--dashboard_agent_command=")]
    assert "--minimal" in agent
    programs = {Path(part).name for one in commands for part in one[:3]}
    assert programs.isdisjoint({"dashboard.py", "monitor.py", "log_monitor.py"}), programs
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")  # an IPv4 address on a socket for both
        for process in descendants
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert all(ipaddress.ip_address(address).is_loopback for address in listening), listening

    inside.kill()
    inside.wait(10)
    until = time.monotonic() + 15
    while alive(descendants) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive(descendants) == []
    waiting.join(10)
    assert failed
