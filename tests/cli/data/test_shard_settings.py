"""Paths of shards on the command line are settings of the data and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import jsonargparse
import pytest
import yaml


def test_shards_behind_urls_are_not_opened_to_read_settings(
    divot: Callable[..., int], tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(fsspec, "open", lambda url, *arguments, **settings: opened.append(url))
    data = {"class_path": "divot_datamodules.video_text.VideoTextData", "init_args": {"train": "memory://a.tar"}}
    with pytest.raises(SystemExit):
        divot("fit", tiny | {"data": data}, "--data.train", "memory://b.tar", "--print_config")
    assert opened == []


@pytest.mark.parametrize(
    "content", ["", "train: {}", "- a.tar", '{"video": "a.mp4"}'], ids=["empty", "map", "list", "row"]
)
@pytest.mark.parametrize("place", ["recipe", "option"])
def test_a_file_is_a_name_whatever_is_in_it(
    divot: Callable[..., int], tiny: dict[str, Any], content: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("train.jsonl").write_text(content)
    named = {"train": "train.jsonl"}
    data = {"class_path": "divot_datamodules.video_text.VideoTextData", "init_args": named if place == "recipe" else {}}
    words = ["--data.train", "train.jsonl"] if place == "option" else []
    with pytest.raises(SystemExit):
        divot("fit", tiny | {"data": data}, *words, "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["train"] == "train.jsonl"


def test_no_file_is_read_to_find_settings_in_it(
    divot: Callable[..., int], tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_text = jsonargparse._paths.Path.read_text
    monkeypatch.setattr(
        jsonargparse._paths.Path, "read_text", lambda path: (read.append(str(path)), read_text(path))[1]
    )
    Path("shards.tar").write_bytes(b"\0" * 10240)
    data = {"class_path": "divot_datamodules.video_text.VideoTextData", "init_args": {"train": "shards.tar"}}
    with pytest.raises(SystemExit):
        divot("fit", tiny | {"data": data}, "--data.validation", "shards.tar", "--print_config")
    assert [path for path in read if path.endswith(".yaml")], "recipes are read this way"
    assert not [path for path in read if path.endswith(".tar")]
