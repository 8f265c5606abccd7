"""Steps run in order and side by side, done ones never again, and a stopped job continues."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.runner import job_lock
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.experiments.runner.runner import StepRunner
from divot_lightning.experiments.runner.steps import Step


def shell(name: str, script: str, **settings) -> Step:
    return Step(name, ("/bin/sh", "-c", script), **settings)


def run(steps: list[Step], folder: Path, jobs: int = 2):
    return StepRunner(steps, folder, jobs=jobs).run()


def test_steps_run_after_what_they_wait_for(tmp_path):
    order = tmp_path / "order"
    steps = [shell(name, f"echo {name} >> {order}", after=after) for name, after in
             (("data", ()), ("fit", ("data",)), ("encode", ("fit",)), ("report", ("fit", "encode")))]  # fmt: skip
    records = run(steps, tmp_path)
    assert order.read_text().split() == ["data", "fit", "encode", "report"]
    assert all(record.done and record.attempts == 1 for record in records)


def test_independent_steps_run_side_by_side_up_to_the_number_of_jobs(tmp_path):
    # Each waits until the other has started, so that they only end if they run together.
    script = "touch {0}/{1}; until [ -e {0}/{2} ]; do sleep 0.02; done"
    steps = [shell("a", script.format(tmp_path, "a", "b")), shell("b", script.format(tmp_path, "b", "a"))]
    assert len(run(steps, tmp_path)) == 2


def test_one_job_runs_one_step_at_a_time(tmp_path):
    script = f"[ ! -e {tmp_path}/busy ] && touch {tmp_path}/busy && sleep 0.1 && rm {tmp_path}/busy"
    run([shell(name, script) for name in "abc"], tmp_path, jobs=1)


def test_a_step_that_takes_all_slots_runs_alone_and_gets_their_threads(tmp_path):
    script = f"[ ! -e {tmp_path}/busy ] && touch {tmp_path}/busy && sleep 0.1 && rm {tmp_path}/busy"
    wide = shell("wide", f"{script} && echo $OMP_NUM_THREADS > {tmp_path}/threads", slots=2)
    run([wide, shell("narrow", script)], tmp_path)
    assert (tmp_path / "threads").read_text() == "2\n"


def test_steps_that_run_side_by_side_see_different_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    script = "echo $CUDA_VISIBLE_DEVICES > {0}/{1}; until [ -e {0}/{2} ]; do sleep 0.02; done"
    run([shell("a", script.format(tmp_path, "a", "b")), shell("b", script.format(tmp_path, "b", "a"))], tmp_path)
    assert {(tmp_path / name).read_text() for name in "ab"} == {"4\n", "5\n"}
    run([shell("alone", f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/alone")], tmp_path, jobs=1)
    assert (tmp_path / "alone").read_text() == "4,5,6\n"


def test_done_steps_do_not_run_again(tmp_path):
    steps = [shell("once", f"echo x >> {tmp_path}/count")]
    run(steps, tmp_path)
    run(steps, tmp_path)
    assert (tmp_path / "count").read_text() == "x\n"


def test_failed_step_is_reported_and_the_next_start_continues_from_there(tmp_path):
    steps = [
        shell("first", f"echo x >> {tmp_path}/count"),
        shell("second", f"echo 'disk is full'; [ -e {tmp_path}/repaired ]", after=("first",)),
    ]
    failure = run(steps, tmp_path)[1].failure
    assert "'second' failed with exit status 1:\ndisk is full" in failure
    assert len(failure.splitlines()) <= 5
    (tmp_path / "repaired").touch()
    records = run(steps, tmp_path)
    assert (tmp_path / "count").read_text() == "x\n"
    assert [record.attempts for record in records] == [1, 2]


def test_a_failed_step_stops_only_what_waits_for_it(tmp_path):
    steps = [
        shell("broken", "echo no luck; exit 3"),
        shell("waits", "true", after=("broken",)),
        shell("waits_longer", "true", after=("waits",)),
        shell("other", "true"),
    ]
    runner = StepRunner(steps, tmp_path)
    records = {record.name: record for record in runner.run()}
    assert records["other"].done
    assert runner.failed == {"broken", "waits", "waits_longer"}
    assert not records["broken"].done
    assert "no luck" in records["broken"].failure
    assert records.keys() == {"broken", "other"}


def test_what_an_unfinished_step_left_is_cleared_before_it_starts_again(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "half.tar").touch()
    run(
        [shell("data", f"[ ! -e {tmp_path}/shards ] && mkdir {tmp_path}/shards", outputs=(tmp_path / "shards",))],
        tmp_path,
    )


def test_a_step_that_does_not_write_its_output_has_failed(tmp_path):
    steps = [
        shell("data", "true", outputs=(tmp_path / "shards",)),
        shell("fit", f"touch {tmp_path}/fit", after=("data",)),
    ]
    (record,) = run(steps, tmp_path)
    assert not record.done
    assert f"'data' ended without an error, but\nit did not write {tmp_path / 'shards'}\n" in record.failure
    assert "did not write" in record.reason
    assert not (tmp_path / "fit").exists()


def test_run_with_a_checkpoint_is_resumed_and_one_without_is_begun_anew(tmp_path):
    def fit(name: str) -> Step:
        run_folder = tmp_path / name
        return shell(name, f"[ ! -e {run_folder} ] && echo anew > {tmp_path}/{name}.how", run=run_folder,
                     resume=("/bin/sh", "-c", f"echo resumed > {tmp_path}/{name}.how"))  # fmt: skip

    # Whole or not: a damaged one is for `divot resume` to refuse, not for us to throw away.
    (tmp_path / "with/checkpoints/step_00000002").mkdir(parents=True)
    (tmp_path / "without/checkpoints").mkdir(parents=True)
    run([fit("with"), fit("without")], tmp_path)
    assert (tmp_path / "with.how").read_text() == "resumed\n"
    assert (tmp_path / "without.how").read_text() == "anew\n"


def with_recipe(script: str, recipe: Path, **settings) -> Step:
    step = shell("fit", script, **settings)
    return replace(step, command=(*step.command, "--config", str(recipe)), resume=step.command)


@pytest.mark.parametrize("stays", ["done", "checkpoint"])
def test_a_step_whose_recipe_has_changed_since_is_refused(tmp_path, stays):
    recipe, folder, ends = tmp_path / "mine.yaml", tmp_path / "run", "true" if stays == "done" else "false"
    step = with_recipe(f"mkdir -p {folder}/checkpoints/step_00000002; {ends}", recipe, run=folder)
    recipe.write_text("model: {width: 8}")
    run([step], tmp_path)
    recipe.write_text("# a remark\nmodel:\n  width: 8\n")
    run([step], tmp_path)
    recipe.write_text("model: {width: 16}")
    with pytest.raises(UserError, match=r"'fit', started with a recipe that has changed.*\n.*mine\.yaml\nGive another"):
        run([step], tmp_path)
    (tmp_path / "steps" / "fit.json").unlink()
    run([step], tmp_path)


def test_a_failed_step_starts_again_with_its_corrected_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    step = with_recipe(f"grep right {recipe}", recipe)
    recipe.write_text("model: wrong")
    assert not run([step], tmp_path)[0].done
    recipe.write_text("model: right")
    assert run([step], tmp_path)[0].done
    recipe.write_text("model: right, but another")
    with pytest.raises(UserError, match="changed since"):
        run([step], tmp_path)


def test_a_done_step_of_another_command_is_refused(tmp_path):
    run([shell("data", "true size 32")], tmp_path)
    with pytest.raises(UserError, match="true size 64"):
        run([shell("data", "true size 64")], tmp_path)


def test_two_jobs_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(job_lock, "LOCK_SECONDS", 0.0)
    inner = run([shell("outer", "true"), shell("inner", _nested(tmp_path), after=("outer",))], tmp_path)[1]
    assert not inner.done
    assert "another job is working" in (tmp_path / "steps" / "inner.log").read_text()


@pytest.mark.parametrize(
    ("outer", "inner", "runs"),
    [("a", "b", True), ("a", "a", False), ("a", "", False), ("", "a", False)],
)
def test_parts_of_a_job_run_beside_each_other_but_not_beside_themselves_or_the_whole(tmp_path, outer, inner, runs):
    steps = [shell("outer", "true"), shell("inner", _nested(tmp_path, inner), after=("outer",))]
    runner = StepRunner(steps, tmp_path, part=outer)
    records = {record.name: record for record in runner.run()}
    assert records["inner"].done == runs


def _nested(folder: Path, part: str = "") -> str:
    code = (
        "from pathlib import Path; from divot_lightning.experiments.runner import job_lock, runner; "
        "from divot_lightning.experiments.runner.steps import Step; job_lock.LOCK_SECONDS = 0.0; "
        f"runner.StepRunner([Step('x', ('true',))], Path('{folder}'), part='{part}').run()"
    )
    return f'{sys.executable} -c "{code}"'


def test_no_jobs_are_refused(tmp_path):
    with pytest.raises(UserError, match="--jobs is 0"):
        run([shell("a", "true")], tmp_path, jobs=0)


def test_memory_of_children_is_recorded(tmp_path):
    script = f'{sys.executable} -c "x = bytearray(80 << 20); import time; time.sleep(1.5)"; true'
    (record,) = run([shell("big", script)], tmp_path)
    if Path("/proc").is_dir():
        assert 80 < record.peak_mib < 400
        assert record.together_mib >= record.peak_mib
    assert record.seconds > 1.4


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_job_leaves_no_child_behind_and_continues(tmp_path, how):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(f"""
        import pathlib, signal, sys
        from divot_lightning.experiments.runner.runner import StepRunner
        from divot_lightning.experiments.runner.steps import Step
        from divot_lightning.experiments.runner.processes import stop_on_terminate

        # A shell that starts the tests in the background has them ignore SIGINT, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_on_terminate()
        folder = pathlib.Path({str(tmp_path)!r})
        wait = "echo $$ > {tmp_path}/pid; [ -e {tmp_path}/go ] || exec sleep 60"
        steps = [Step("first", ("/bin/sh", "-c", "echo x >> {tmp_path}/count")),
                 Step("second", ("/bin/sh", "-c", wait), after=("first",))]
        StepRunner(steps, folder).run()
        """)
    )
    job = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    job.send_signal(how)
    job.wait(60)
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not json.loads((tmp_path / "steps" / "second.json").read_text())["done"]
    (tmp_path / "go").touch()
    assert subprocess.run([sys.executable, str(script)], capture_output=True, check=False).returncode == 0
    assert (tmp_path / "count").read_text() == "x\n"
    record = StepRecord.read(tmp_path, "second")
    assert record is not None
    assert (record.done, record.attempts) == (True, 2)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for an init that may not come by here.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text()
