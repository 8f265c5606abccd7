"""Paths of shards on the command line are settings of the data and nothing else."""

from collections.abc import Callable
from typing import Any

import fsspec
import pytest


def test_shards_behind_urls_are_not_opened_to_read_settings(
    divot: Callable[..., int], tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(fsspec, "open", lambda url, *arguments, **settings: opened.append(url))
    data = {"class_path": "divot_datamodules.video_text.VideoTextData", "init_args": {"train": "memory://a.tar"}}
    with pytest.raises(SystemExit):
        divot("fit", tiny | {"data": data}, "--data.train", "memory://b.tar", "--print_config")
    assert opened == []
