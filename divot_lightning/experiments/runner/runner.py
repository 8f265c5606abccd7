"""Run steps side by side, remember which are done, and continue a job that was killed."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

from divot_lightning.checkpoint.folders import all_checkpoints
from divot_lightning.errors import UserError
from divot_lightning.experiments.runner.failures import failed_step, missing_outputs, other_command, other_recipe
from divot_lightning.experiments.runner.fork_server import PYTHON
from divot_lightning.experiments.runner.job_lock import job_lock
from divot_lightning.experiments.runner.processes import Process, resident_mib, stop_processes
from divot_lightning.experiments.runner.progress import Display, StepMeter, clock, read_progress
from divot_lightning.experiments.runner.records import StepRecord, recipe_sha256
from divot_lightning.experiments.runner.starting import ProcessStarter
from divot_lightning.experiments.runner.steps import Step, check_plan
from divot_lightning.io.files import write_atomically

POLL_SECONDS = 0.2
RECORD_SECONDS = 5.0
TOTAL_FILE = "total_seconds.txt"

StartProcess = Callable[[Sequence[str], IO[bytes], Sequence[int]], Process]
"""Starts a process from its words, with a log and worker slots."""


@dataclass
class _Running:
    step: Step
    process: Process
    log: IO[bytes]
    meter: StepMeter
    record: StepRecord
    slots: tuple[int, ...]
    began: float
    written: float = field(default=0.0)


class StepRunner:
    """Run the steps of a plan inside a folder; a failed step stops only the steps that wait for it.

    Args:
        steps: The plan; if several steps could start, the first of them does.
        folder: Holds `steps/` with a log and a record per step.
        jobs: Number of worker slots that steps share. GPUs are divided among them.
        part: Name of a part of a larger job, "" for the whole job. Parts with different names may run in the same
            folder at the same time; the whole job must run alone.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        folder: Path,
        *,
        jobs: int = 2,
        part: str = "",
    ) -> None:
        check_plan(steps)
        if jobs < 1:
            raise UserError(f"--jobs is {jobs}; it must be at least 1")
        self.steps, self.folder, self.jobs = list(steps), folder, jobs
        self.display = Display()
        self.part = part
        self.failed: set[str] = set()
        self.running: dict[str, _Running] = {}
        self.former_seconds = 0.0
        self.began = self.noted = time.monotonic()

    @property
    def total_seconds(self) -> float:
        """Wall time of this job in seconds, including earlier starts."""
        return self.former_seconds + time.monotonic() - self.began

    def run(self) -> list[StepRecord]:
        """Run all steps that are not done yet.

        Returns:
            The record of every step that was started, in the order of the plan.

        Raises:
            UserError: Another job uses the folder, a step was done with another command, or a recipe has changed.
        """
        (self.folder / "steps").mkdir(parents=True, exist_ok=True)
        with job_lock(self.folder / "steps", self.part) as locks:
            done = self._done()
            if done:
                self.display.say(f"{len(done)} of {len(self.steps)} steps are done already")
            self.former_seconds = self._read_total()
            self.began = time.monotonic()
            ours = [step for step in self.steps if step.name not in done and step.command[:2] == PYTHON]
            starter = ProcessStarter(self.jobs, fork=len(ours) > 1)
            try:
                self._loop(done, partial(starter.start, locks=locks))
            finally:
                self._stop()
                starter.close()
                self._write_total()
        return [record for step in self.steps if (record := StepRecord.read(self.folder, step.name))]

    def _loop(self, done: set[str], start: StartProcess) -> None:
        while len(done) + len(self.failed) < len(self.steps):
            self._give_up_waiting()
            self._start_ready(done, start)
            self._note_memory()
            if time.monotonic() - self.noted > RECORD_SECONDS:
                self._write_total()
            for name in list(self.running):
                if self._poll(self.running[name]):
                    done.add(name)
            footer = f"{len(done)} of {len(self.steps)} steps done, elapsed {clock(self.total_seconds)}"
            self.display.show([running.meter for running in self.running.values()], footer)
            time.sleep(POLL_SECONDS if self.running else 0)

    def _give_up_waiting(self) -> None:
        """Count the steps that wait for a failed one as failed. Plans are sorted, so one pass finds all."""
        for step in self.steps:
            if self.failed.intersection(step.after):
                self.failed.add(step.name)

    def _read_total(self) -> float:
        path = self.folder / "steps" / f"{self.part}{TOTAL_FILE}"
        return float(path.read_text(encoding="ascii")) if path.is_file() else 0.0

    def _write_total(self) -> None:
        self.noted = time.monotonic()
        path = self.folder / "steps" / f"{self.part}{TOTAL_FILE}"
        write_atomically(path, f"{self.total_seconds:.1f}")

    def _done(self) -> set[str]:
        done = set()
        for step in self.steps:
            record = StepRecord.read(self.folder, step.name)
            if record is None:
                continue
            self._require_same_recipe(step, record)
            if not record.done:
                continue
            if record.command != step.command:
                raise UserError(other_command(self.folder, step, record.command))
            done.add(step.name)
        return done

    def _require_same_recipe(self, step: Step, record: StepRecord) -> None:
        """Refuse a changed recipe where what the former one has made would stay: a result, or checkpoints to resume."""
        stays = record.done or (step.run is not None and all_checkpoints(step.run))
        if stays and record.recipe_sha256 and recipe_sha256(step.command) not in (record.recipe_sha256, ""):
            raise UserError(other_recipe(self.folder, step))

    def _start_ready(self, done: set[str], start: StartProcess) -> None:
        taken = {slot for running in self.running.values() for slot in running.slots}
        free = [slot for slot in range(self.jobs) if slot not in taken]
        for number, step in enumerate(self.steps, start=1):
            slots = min(step.slots, self.jobs)
            if step.name in done | self.failed or step.name in self.running or slots > len(free):
                continue
            if not done.issuperset(step.after):
                continue
            self.running[step.name] = self._start(step, f"{number}/{len(self.steps)}", tuple(free[:slots]), start)
            del free[:slots]

    def _start(self, step: Step, position: str, slots: tuple[int, ...], start: StartProcess) -> _Running:
        command = self._command(step)
        former = StepRecord.read(self.folder, step.name) or self._new_record(step)
        recipe = recipe_sha256(step.command)
        record = replace(former, command=step.command, attempts=former.attempts + 1, failure="", recipe_sha256=recipe)
        # A new log for each attempt: an old progress bar must not be read as that of this attempt.
        path = self._log(step.name)
        if path.is_file():
            path.replace(path.with_suffix(f".{former.attempts}.log"))
        log = path.open("wb")
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        record.write(self.folder)
        process = start(command, log, slots)
        now = time.monotonic()
        return _Running(step, process, log, StepMeter(step.name, position, now), record, slots, now, now)

    def _new_record(self, step: Step) -> StepRecord:
        return StepRecord(step.name, step.command, False, 0.0, 0.0, 0.0, 0, time.time())

    def _note_memory(self) -> None:
        mib = {name: resident_mib(running.process.pid) for name, running in self.running.items()}
        together = sum(mib.values())
        for name, running in self.running.items():
            peak, beside = max(running.record.peak_mib, mib[name]), max(running.record.together_mib, together)
            running.record = replace(running.record, peak_mib=peak, together_mib=beside)

    def _command(self, step: Step) -> tuple[str, ...]:
        """Return the command to resume or to start a step; before a start, remove the output of earlier attempts."""
        if step.run is not None and all_checkpoints(step.run):
            return step.resume
        for path in (*step.outputs, *((step.run,) if step.run else ())):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return step.command

    def _poll(self, running: _Running) -> bool:
        """Update a running step; return whether it has just ended well."""
        now, step = time.monotonic(), running.step
        status = running.process.poll()
        if status is None:
            running.meter.update(read_progress(self._log(step.name), step.run), now)
            if now - running.written > RECORD_SECONDS:
                self._write_record(running, now, done=False)
            return False
        running.log.close()
        del self.running[step.name]
        missing, failure = [str(path) for path in step.outputs if not path.exists()], ""
        if status != 0:
            failure = failed_step(step, status, self._log(step.name))
        elif missing:
            failure = missing_outputs(step, missing, self._log(step.name))
        self._write_record(running, now, done=not failure, failure=failure)
        if failure:
            self.failed.add(step.name)
            self.display.say(failure)
            return False
        seconds, mib = running.record.seconds, running.record.peak_mib
        self.display.say(f"{running.meter.position:>6}  {step.name:<32} done in {clock(seconds)}, {mib:.0f} MiB")
        return True

    def _write_record(self, running: _Running, now: float, *, done: bool, failure: str = "") -> None:
        seconds = running.record.seconds + now - max(running.written, running.began)
        running.record, running.written = replace(running.record, seconds=seconds, done=done, failure=failure), now
        running.record.write(self.folder)

    def _log(self, name: str) -> Path:
        return self.folder / "steps" / f"{name}.log"

    def _stop(self) -> None:
        if self.running:
            self.display.say(f"stopping; {', '.join(self.running)} may save first; Ctrl-C ends them at once")
        stop_processes([running.process for running in self.running.values()])
        now = time.monotonic()
        for running in self.running.values():
            running.log.close()
            self._write_record(running, now, done=False)
        self.running.clear()
