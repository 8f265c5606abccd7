"""A name of the hub leads to the folder of its revision; without a revision the network is never used."""

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from divot_lightning.errors import UserError
from divot_lightning.io import hub


@pytest.fixture
def downloads(monkeypatch):
    """The calls of `snapshot_download`, which finds nothing unless the network may be used."""
    calls = []

    def download(name, *, revision, local_files_only, ignore_patterns):
        calls.append((name, revision, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        return f"cache/{name}/{revision}"

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_a_folder_is_itself(tmp_path, downloads):
    assert hub.pretrained_folder(str(tmp_path), "main", "llm.language_model") == str(tmp_path)
    assert downloads == []


def test_a_revision_of_a_repository_is_downloaded(downloads):
    assert hub.pretrained_folder("owner/model", "abc", "llm.language_model") == "cache/owner/model/abc"
    assert downloads == [("owner/model", "abc", False)]


def test_without_a_revision_only_the_cache_is_looked_at(downloads):
    assert hub.pretrained_folder("owner/model", None, "llm.language_model") == "owner/model"
    assert downloads == [("owner/model", None, True)]


def test_offline_a_revision_that_is_not_in_the_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"llm\.language_model is 'owner/model'.*revision 'abc'") as caught:
        hub.pretrained_folder("owner/model", "abc", "llm.language_model")
    assert len(str(caught.value).splitlines()) <= 5
