"""Run a function in several processes with a process group, on any machine, for tests.

Each process has a gloo process group on the loopback device. Functions and classes of a test file are loaded from that
file, so it need not be importable.

The processes are forked from a server that has imported torch and the libraries around it once (the standard library's
"forkserver"): importing them takes seconds, more than most tests do. Nothing else of the calling process is in them.
"""

import contextlib
import importlib.util
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

_PRELOADED = ("pytest", "diffusers", "peft", "divot_lightning.testing.rank_server")
"""What the server imports, where it is installed."""

_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "DS_ACCELERATOR": "cpu",
}
"""Environment variables of the processes, unless the caller has others."""

_GRACE_SECONDS = 5.0


class DistributedError(RuntimeError):
    """A process failed or did not finish in time; the message holds each failed rank's traceback or output."""


def run_distributed(function: Callable[..., Any], num_processes: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(rank, *args)` in each of several processes, and collect the results.

    In each process `torch.distributed` is initialised with gloo, the usual variables (RANK, LOCAL_RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT) are set, DeepSpeed runs on the CPU and torch has one thread.

    Args:
        function: A function at the top level of a module or test file.
        num_processes: Number of processes, at least 1.
        *args: Arguments that can be pickled; functions and classes of a test file may be among them.
        timeout: Seconds after which all processes are killed.

    Returns:
        The results in the order of ranks.

    Raises:
        DistributedError: A rank raised, died or did not finish in time; all others are killed too.
    """
    with tempfile.TemporaryDirectory(prefix="run_distributed") as name:
        folder = Path(name)
        job = io.BytesIO()
        _Pickler(job).dump((function, args))
        (folder / "job.pkl").write_bytes(pickle.dumps((sys.path, job.getvalue())))
        port = _free_port()
        processes = [_start(folder, rank, num_processes, port) for rank in range(num_processes)]
        try:
            finished = _wait(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        _raise_for_failures(folder, processes, finished, timeout)
        return [pickle.loads((folder / f"result{rank}.pkl").read_bytes()) for rank in range(num_processes)]


def _enter(folder: str, environment: dict[str, str], working_directory: str) -> None:
    """Turn a forked process into a rank: it writes into a file, and ends when the process that asked for it does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(working_directory)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    with open(Path(folder) / f"output{environment['RANK']}.txt", "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    _run_function(folder)


def _end_with_caller() -> None:
    # The server is this process's parent, yet it stays as long as one of its processes does: it is the caller's end
    # that counts.
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _run_function(folder_name: str) -> None:
    folder, rank = Path(folder_name), int(os.environ["RANK"])
    try:
        search_path, job = pickle.loads((folder / "job.pkl").read_bytes())
        sys.path[:] = search_path
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        function, args = pickle.loads(job)
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
        result = function(rank, *args)
        distributed.barrier()
        distributed.destroy_process_group()
        buffer = io.BytesIO()
        _Pickler(buffer).dump(result)
        (folder / f"result{rank}.pkl").write_bytes(buffer.getvalue())
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        sys.stdout.flush()
        os._exit(1)  # a clean exit would wait for the other ranks, which wait for this one


def _start(folder: Path, rank: int, num_processes: int, port: int) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    with _environment({**_DEFAULTS, **os.environ}):
        forkserver.ensure_running()
    environment = {
        **_DEFAULTS,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    process = context.Process(target=_enter, args=(str(folder), environment, os.getcwd()), name=f"rank {rank}")
    process.start()
    return process


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _wait(processes: Sequence[BaseProcess], timeout: float) -> list[bool]:
    """Wait for all processes, or a little longer than for the first failure; return which have ended by themselves."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        time.sleep(0.02)
    return [process.exitcode is not None for process in processes]


def _raise_for_failures(folder: Path, processes: Sequence[BaseProcess], finished: list[bool], timeout: float) -> None:
    reports = []
    for rank, process in enumerate(processes):
        error = folder / f"error{rank}.txt"
        file = folder / f"output{rank}.txt"
        output = file.read_text(errors="replace")[-2000:] if file.exists() else ""
        if error.exists():
            reports.append(f"rank {rank} raised:\n{error.read_text()}")
        elif not finished[rank]:
            reports.append(f"rank {rank} was not done (limit {timeout:g} s); its last output:\n{output}")
        elif process.exitcode != 0:
            reports.append(f"rank {rank} ended with code {process.exitcode}; its last output:\n{output}")
    if reports:
        raise DistributedError("\n".join(reports))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Pickler(pickle.Pickler):
    """Pickle functions and classes with the file that defines them, so that test files need not be importable."""

    def reducer_override(self, item: Any) -> Any:
        if not isinstance(item, type | FunctionType) or "<" in item.__qualname__ or item.__module__ == __name__:
            return NotImplemented
        file = getattr(sys.modules.get(item.__module__), "__file__", None)
        return NotImplemented if file is None else (_load, (item.__module__, file, item.__qualname__))


def _load(module: str, file: str, qualname: str) -> Any:
    """Return a class or function of a module; the module is loaded from its file if it cannot be imported."""
    found: Any = _imported(module, file) or _loaded_from_file(module, file)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _imported(module: str, file: str) -> ModuleType | None:
    if module == "__main__":
        return None
    try:
        found = import_module(module)
    except ImportError:
        return None
    return found if getattr(found, "__file__", None) == file else None


def _loaded_from_file(module: str, file: str) -> ModuleType:
    name = f"_from_{module}" if module == "__main__" else module
    if getattr(sys.modules.get(name), "__file__", None) == file:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
