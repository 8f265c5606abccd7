"""Whose failure is told when several processes of a job fail."""

import json
from pathlib import Path

import pytest

from divot_lightning.distributed.failures import first_failure, note_failure
from divot_lightning.errors import UserError


def _note(monkeypatch: pytest.MonkeyPatch, folder: Path, rank: int, error: Exception, *, by_user: bool = False) -> bool:
    monkeypatch.setenv("DIVOT_FAILURES", str(folder))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    return note_failure(error, str(error), by_user=by_user)


def test_what_a_user_can_mend_comes_first_and_what_follows_from_a_lost_peer_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _note(monkeypatch, tmp_path, 1, RuntimeError("gloo: Connection closed by peer [::1]"))
    assert _note(monkeypatch, tmp_path, 2, ZeroDivisionError("division by zero"))
    exits: dict[int, int | None] = {1: 1, 2: 1, 3: None, 4: 0}
    assert "rank 2: division by zero" in str(first_failure(tmp_path, exits))
    assert _note(monkeypatch, tmp_path, 3, UserError("width is 3"), by_user=True)
    exits[3] = 2
    failed = first_failure(tmp_path, exits)
    assert failed is not None
    assert (str(failed), failed.exit_code) == ("rank 3: width is 3", 2)


def test_a_process_that_was_killed_comes_before_those_that_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _note(monkeypatch, tmp_path, 2, RuntimeError("gloo: Connection closed by peer [::1]"))
    exits: dict[int, int | None] = {1: None, 2: 1, 3: 0}
    failed = first_failure(tmp_path, exits)
    assert failed is not None
    assert failed.lost_peer, "the cause may still be ending"
    exits[1] = -9
    failed = first_failure(tmp_path, exits)
    assert failed is not None
    assert (str(failed), failed.lost_peer) == ("rank 1 was ended by SIGKILL (out of memory?)", False)


def test_a_process_without_a_reason_is_described_by_how_it_ended(tmp_path: Path) -> None:
    assert first_failure(tmp_path, {1: 0, 2: None}) is None
    assert str(first_failure(tmp_path, {1: 0, 2: -11})) == "rank 2 was ended by SIGSEGV"


def test_the_first_process_and_one_alone_speak_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _note(monkeypatch, tmp_path, 0, ValueError("x"))
    monkeypatch.delenv("DIVOT_FAILURES")
    assert not note_failure(ValueError("x"), "x", by_user=False)


def test_torchrun_gets_a_lost_peer_later_than_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    for number, error in enumerate([ValueError("the cause"), RuntimeError("Connection reset by peer")]):
        file = tmp_path / f"error{number}.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        note_failure(error, str(error), by_user=False)
        message = json.loads(file.read_text())["message"]
        assert str(error) in message["message"]
        times.append(int(message["extraInfo"]["timestamp"]))
    assert times[1] > times[0] + 10
