"""What a command on a trained run can find wrong without its models is found before they are loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from divot_lightning.cli.main import main
from divot_lightning.inference.pipeline import DivotPipeline

WORDS = {
    "generate": ["runs/llm", "--prompt", "a red circle", "--output", "{}/x.mp4"],
    "story": ["runs/llm", "two circles", "--output", "{}/x"],
    "reconstruct": ["runs/llm", "x.mp4", "--output", "{}/x"],
    "ask": ["runs/llm", "--prompts", "prompts.jsonl", "--output", "{}/x.jsonl"],
}
TOO_LARGE = str(2**64)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused before it opens its run, and write nothing; return the message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"video": "a.mp4", "question": "what?"}\n')
    (tmp_path / "file").touch()

    def opened(*args: object, **options: object) -> None:
        raise AssertionError("the run is opened")

    monkeypatch.setattr(DivotPipeline, "from_pretrained", opened)

    def run(command: str, folder: str, *more: str) -> str:
        assert main([command, *(word.format(folder) for word in WORDS[command]), *more]) == 2
        message = capsys.readouterr().err
        assert len(message.splitlines()) <= 5
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "prompts.jsonl"]
        return message

    return run


@pytest.mark.parametrize("command", WORDS)
def test_an_output_that_cannot_be_written(refused: Callable[..., str], command: str) -> None:
    assert "there is a file where a folder is needed" in refused(command, "file")
    assert "cannot be written" in refused(command, "/proc/nowhere")


@pytest.mark.parametrize("command", WORDS)
def test_a_seed_that_no_generator_takes(refused: Callable[..., str], command: str) -> None:
    assert f"--seed: {TOO_LARGE} is not from 0 to {2**64 - 1}" in refused(command, "out", "--seed", TOO_LARGE)
    assert "--seed: -1 is not from 0" in refused(command, "out", "--seed", "-1")
