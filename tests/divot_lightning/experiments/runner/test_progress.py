"""Progress is read from logs and metrics, and shown in one line."""

import io

from divot_lightning.experiments.runner.progress import Display, Progress, StepMeter, read_progress


def test_the_last_bar_in_the_log_counts(tmp_path):
    (tmp_path / "log").write_text("$ divot\nx: 3/40 [00:01<00:09]\rx: 12/40 [00:04<00:08, 3.1it/s]")
    assert read_progress(tmp_path / "log") == Progress(12, 40)


def test_no_log_and_no_bar_tell_nothing(tmp_path):
    assert read_progress(tmp_path / "log") is None
    (tmp_path / "log").write_text("importing\n")
    assert read_progress(tmp_path / "log") is None


def test_logged_steps_are_newer_than_the_bar(tmp_path):
    (tmp_path / "log").write_text("TokenizerPretraining: 0.30 M trained, steps 0 to 300, into runs/x\n")
    assert read_progress(tmp_path / "log", tmp_path) == Progress(0, 300)
    (tmp_path / "metrics.csv").write_text("step,epoch,loss\n9,0,0.5\n19,0,0.4\n")
    assert read_progress(tmp_path / "log", tmp_path) == Progress(20, 300)
    with (tmp_path / "log").open("a") as log:
        log.write("tokenizer: 25/300 [00:10<01:00]\r")
    assert read_progress(tmp_path / "log", tmp_path) == Progress(25, 300)


def test_line_holds_bar_rate_and_time_left():
    meter = StepMeter("fit", "2/9", started=100.0)
    assert "starting  elapsed 0:01" in meter.line(101.0)
    meter.update(Progress(100, 400), 110.0)
    meter.update(Progress(200, 400), 120.0)
    line = meter.line(120.0)
    assert "2/9  fit" in line
    assert "[##########..........]  50%  200/400  10.0/s  left 0:20  elapsed 0:20" in line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_never_wrap_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    display = Display(Terminal())
    display.show([StepMeter("a step with a long name", "1/9", 0.0)], "footer")
    assert all(len(line) < 30 for line in display.stream.getvalue().splitlines())


def test_live_display_redraws_and_keeps_what_was_said():
    display = Display(Terminal())
    display.show([], "footer one")
    display.say("step done")
    display.show([], "footer two")
    assert display.stream.getvalue() == "footer one\n\x1b[1F\x1b[Jstep done\nfooter two\n"


def test_plain_display_is_not_flooded():
    stream = io.StringIO()
    display = Display(stream)
    for _ in range(100):
        display.show([], "footer")
    assert stream.getvalue() == ""
