"""Files that a command reads are text or JSON of another kind, cut off, or no UTF-8: told in a few lines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from divot_lightning.cli.main import main

NO_TEXT = b"\xff\xfe caf\xe9"
"""Bytes that are no UTF-8."""


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; return the message."""

    def run(*words: str | Path) -> str:
        assert main(list(map(str, words))) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert len(message.splitlines()) <= 5
        return message

    return run


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 2, "scores": [{}]}', b'"x"', b"{", NO_TEXT])
def test_a_file_that_holds_no_scores_is_named(told: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "scores.json"
    file.write_bytes(content)
    message = told("compare", file, file)
    assert str(file) in message
    assert "holds no scores" in message or "has the form None" in message


@pytest.mark.parametrize("content", [b"a: [1", NO_TEXT, b"steps: 3\n\x00"])
def test_a_recipe_of_an_experiment_that_is_no_yaml_is_named(
    told: Callable[..., str], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    message = told("ablate", tmp_path / "mine.yaml", "--folder", tmp_path / "out")
    assert "mine.yaml is no valid YAML" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"a: [1", NO_TEXT])
def test_a_damaged_config_of_a_run_is_named(told: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert f"{tmp_path / 'config.yaml'}" in told("data", "skip", tmp_path, "--steps", "1:2")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("content", ['{"tokenizer": ', "[]", "3", '{"tokenizer": {}}', '{"tokenizer": 3}'])
def test_a_damaged_record_of_components_is_named(told: Callable[..., str], tmp_path: Path, content: str) -> None:
    (tmp_path / "components.json").write_text(content)
    assert f"{tmp_path / 'components.json'} is damaged" in told("export", tmp_path, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"a: [1", b"[1]", b"data: 3\n", b"data: {init_args: 3}\n", NO_TEXT])
def test_damaged_settings_of_a_run_are_named_by_its_export(
    told: Callable[..., str], tmp_path: Path, content: bytes
) -> None:
    from divot_lightning.checkpoint.components import save_component
    from tests.helpers.tiny_models import tiny_tokenizer

    save_component(tiny_tokenizer(), tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    (tmp_path / "run" / "finished.json").write_text("{}")
    assert f"{tmp_path / 'run' / 'config.yaml'}" in told("export", tmp_path / "run", "--to", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_a_damaged_file_of_one_object_is_named(tmp_path: Path, content: str) -> None:
    from divot_lightning.errors import UserError
    from divot_lightning.io.jsonl import read_object

    (tmp_path / "protocol.json").write_text(content)
    with pytest.raises(UserError, match=r"protocol\.json is damaged"):
        read_object(tmp_path / "protocol.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_of_weights_is_named(tmp_path: Path, content: str) -> None:
    from divot_lightning.errors import UserError
    from divot_lightning.models.weights import weight_files

    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json is damaged"):
        weight_files(tmp_path)


def test_a_judge_s_prompt_that_is_no_text_is_named(tmp_path: Path) -> None:
    from divot_lightning.errors import UserError
    from divot_lightning.evaluation.judges.prompts import load_prompt

    (tmp_path / "prompt.txt").write_bytes(NO_TEXT)
    with pytest.raises(UserError, match=r"prompt\.txt is no UTF-8 text"):
        load_prompt("yes_no", str(tmp_path / "prompt.txt"))
