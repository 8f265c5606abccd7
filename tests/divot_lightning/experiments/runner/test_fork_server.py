"""A forked step is what a fresh process would be: its words, its log, its exit status, its signals and its end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from divot_lightning.experiments.runner.fork_server import PYTHON, ForkServer
from divot_lightning.experiments.runner.processes import start_process, step_environment, stop_processes
from divot_lightning.experiments.runner.starting import ProcessStarter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux only")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(autouse=True)
def search_path(modules, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(modules))


@pytest.fixture
def no_torch(modules, tmp_path, monkeypatch):
    """A server that the test starts does not find torch, whose import takes seconds."""
    (tmp_path / "torch.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{modules}")


@pytest.fixture
def module(modules, tmp_path):
    """Write a module that steps can run."""

    def write(code):
        name = f"step_{tmp_path.name}"
        (modules / f"{name}.py").write_text(code)
        return (*PYTHON, name)

    return write


@pytest.fixture(scope="module")
def server(modules):
    opened = ForkServer(step_environment(threads=1) | {"PYTHONPATH": str(modules)})
    yield opened
    opened.close()


def ended(process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while (status := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status


def wait_for(path, text):
    deadline = time.monotonic() + 60
    while text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


WAIT = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]):\n    time.sleep(0.02)"

FACTS = """
import atexit, json, os, signal, sys
import divot_lightning.training.runs, divot_lightning.experiments.measure, torch
from divot_lightning.io.progress_bars import slow_progress_bars
slow_progress_bars()  # as each `divot` command does
atexit.register(print, "left")
print(json.dumps({
    "argv": sys.argv[1:],
    "name": __name__,
    "main": sys.modules["__main__"].__spec__.name,
    "threads": torch.get_num_threads(),
    "leads a session": os.getsid(0) == os.getpid(),
    "input": sys.stdin.read(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "parent": os.environ.get("DIVOT_PARENT"),
    "path": [folder for folder in sys.path if folder],
    "environment": sorted(name for name in os.environ if not name.startswith("PYTEST")),
}))
print("error", file=sys.stderr)
"""


def test_a_forked_process_sees_what_a_fresh_one_sees(server, module, tmp_path):
    command = (*module(FACTS), "one", "two words")
    with (tmp_path / "forked").open("wb") as forked, (tmp_path / "fresh").open("wb") as fresh:
        assert ended(server.start(command, forked)) == 0
        safe = (command[0], "-P", *command[1:])  # as `divot` is: the current folder is no place of modules
        assert start_process(safe, fresh, threads=1).wait() == 0
    seen = (tmp_path / "forked").read_text()
    assert sorted(seen.splitlines()) == sorted((tmp_path / "fresh").read_text().splitlines())
    assert '"argv": ["one", "two words"]' in seen
    assert "left" in seen


def test_a_module_that_the_server_has_imported_runs_without_a_warning(server, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        assert ended(server.start((*PYTHON, "divot_lightning.experiments.measure", "[]"), log)) == 0
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("import sys; sys.exit(75)", 75, ""),
        ("raise SystemExit('no such thing')", 1, "no such thing"),
        ("raise ValueError('3 is too small')", 1, "ValueError: 3 is too small"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_the_exit_status_and_the_reason_are_those_of_the_module(server, module, tmp_path, code, status, text):
    with (tmp_path / "log").open("wb") as log:
        assert ended(server.start(module(code), log)) == status
    assert text in (tmp_path / "log").read_text()


def test_processes_run_side_by_side_and_end_in_any_order(server, module, tmp_path):
    command, go = module(f"{WAIT}\nsys.exit(int(sys.argv[2]))"), tmp_path / "go"
    with (tmp_path / "log").open("wb") as log:
        slow, quick = server.start((*command, str(go), "3"), log), server.start((*command, str(tmp_path), "4"), log)
        assert ended(quick) == 4
        assert slow.poll() is None
        go.touch()
        assert ended(slow) == 3
        assert (quick.poll(), slow.poll()) == (4, 3)


def test_an_interrupt_lets_it_save_and_a_deaf_one_is_killed(server, module, tmp_path):
    polite = "import time\nprint('ready')\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('saved')"
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)"
    cases = ((polite, 60.0, 0, "ready\nsaved\n"), (deaf, 0.2, -signal.SIGKILL, "ready\n"))
    for code, patience, status, text in cases:
        with (tmp_path / "log").open("wb") as log:
            process = server.start(module(code), log)
            wait_for(tmp_path / "log", "ready")
            stop_processes([process], patience)
        assert process.poll() == status
        assert (tmp_path / "log").read_text() == text


def test_open_files_are_inherited(server, module, tmp_path):
    command = module(
        "import os\nfor number in range(3, 50):\n    if os.path.exists(f'/proc/self/fd/{number}'):\n"
        "        print(os.readlink(f'/proc/self/fd/{number}'))"
    )
    with (tmp_path / "log").open("wb") as log, (tmp_path / "lock").open("wb") as lock:
        assert ended(server.start(command, log, [lock.fileno()])) == 0
    assert (tmp_path / "log").read_text() == f"{tmp_path / 'lock'}\n"


@pytest.mark.usefixtures("no_torch")
def test_a_forked_process_ends_with_the_runner_even_if_that_is_killed(module, tmp_path):
    command = module("import os, time\nprint('ready', os.getpid())\ntime.sleep(60)")
    runner = f"""
from divot_lightning.experiments.runner.fork_server import ForkServer
from divot_lightning.experiments.runner.processes import step_environment
import time
ForkServer(step_environment(threads=1)).start({command!r}, open({str(tmp_path / "log")!r}, "wb"))
time.sleep(60)
"""
    (tmp_path / "log").touch()
    process = subprocess.Popen([sys.executable, "-c", runner])
    wait_for(tmp_path / "log", "ready")
    number = int((tmp_path / "log").read_text().split()[1])
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{number}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_server_has_one_thread_when_it_forks(server, module, tmp_path):
    """A lock that another thread holds while a process is forked would stay locked in it for ever."""
    with (tmp_path / "log").open("wb") as log:
        assert ended(server.start(module("pass"), log)) == 0
    assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1


@pytest.mark.usefixtures("no_torch")
def test_without_its_server_a_job_continues_with_fresh_processes(module, tmp_path):
    starter = ProcessStarter(2, fork=True)
    command = module("print('done')")
    with (tmp_path / "log").open("wb") as log:
        assert ended(starter.start(command, log, [0], [])) == 0
        starter.server.process.kill()
        starter.server.process.wait()
        assert ended(starter.start(command, log, [0], [])) == 0
    starter.close()
    assert (tmp_path / "log").read_text() == "done\ndone\n"


@pytest.mark.usefixtures("no_torch")
def test_a_command_too_long_for_a_message_starts_fresh_and_other_processes_continue(module, tmp_path):
    starter = ProcessStarter(2, fork=True)
    command, go = module(f"{WAIT}\nprint(sum(map(len, sys.argv[2:])))"), tmp_path / "go"
    with (tmp_path / "log").open("wb") as log:
        short = starter.start((*command, str(go)), log, [0], [])
        long = starter.start((*command, str(tmp_path), *["x" * 100_000] * 3), log, [1], [])
        assert isinstance(long, subprocess.Popen)
        assert ended(long) == 0
        go.touch()
        assert ended(short) == 0
    starter.close()
    assert (tmp_path / "log").read_text() == "300000\n0\n"


@pytest.mark.parametrize(("gpus", "slots"), [("0", [0]), ("", [0, 1])])
def test_processes_with_gpus_or_several_threads_are_fresh(module, tmp_path, monkeypatch, gpus, slots):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    starter = ProcessStarter(2, fork=True)
    with (tmp_path / "log").open("wb") as log:
        command = module("import os; print(os.environ['OMP_NUM_THREADS'])")
        assert ended(starter.start(command, log, slots, [])) == 0
    assert starter.server is None
    assert (tmp_path / "log").read_text() == f"{len(slots)}\n"
