import json
import shutil
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_heads.mse import MSEHead
from divot_lightning.checkpoint import components
from divot_lightning.checkpoint.components import load_component, load_weights, read_settings, save_component
from divot_lightning.checkpoint.run_components import find_component, read_record, record_components, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.weights import StoredTensor


@pytest.fixture(autouse=True)
def _trusted(monkeypatch):
    """The classes of this file stand for a user's own."""
    monkeypatch.setenv("DIVOT_TRUSTED_PACKAGES", f"{__name__.partition('.')[0]}, torch, json, no_such_package")


@dataclass
class Inner:
    depth: int = 1


@dataclass
class PartConfig:
    width: int = 3
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        if isinstance(self.inner, dict):
            self.inner = Inner(**self.inner)


class Part(nn.Module):
    """An embedding and an output layer that share their weight, as language models do."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(5, config.width)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.inner.depth))
        self.output = nn.Linear(config.width, 5, bias=False)
        self.output.weight = self.words.weight
        self.register_buffer("mean", torch.randn(config.width))


class Other(nn.Module):
    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config


class Drawn(TorchDispatchMode):
    """Counts the parameters that get random values."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) in ("aten.normal_.default", "aten.uniform_.default"):
            self.parameters += isinstance(args[0], nn.Parameter)
        return func(*args, **(kwargs or {}))


class WithWords(nn.Module):
    """A part that its settings do not describe alone."""

    def __init__(self, config: PartConfig, words: list[str]) -> None:
        super().__init__()
        self.config, self.words = config, words
        self.table = nn.Embedding(len(words), config.width)

    def save_extra(self, folder: Path) -> None:
        (folder / "words.txt").write_text(" ".join(self.words))

    @classmethod
    def from_component(cls, config: dict, folder: Path) -> "WithWords":
        return cls(PartConfig(**config), (folder / "words.txt").read_text().split())


class Unsaved(WithWords):
    def save_extra(self, folder: Path) -> None:
        raise RuntimeError("the disk is full")


def saved(folder, **settings):
    part = Part(PartConfig(**settings))
    save_component(part, folder)
    return part


def rewrite_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def message_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert len(text.splitlines()) <= 5
    return text


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_buffers_and_nested_settings_come_back(tmp_path):
    part = saved(tmp_path / "part", width=4, inner=Inner(2))
    loaded = load_component(tmp_path / "part", Part)
    assert loaded.config == part.config
    assert loaded.state_dict().keys() == part.state_dict().keys()
    for name, value in part.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_stored_tensors_are_in_memory_one_at_a_time(tmp_path, monkeypatch):
    saved(tmp_path / "part", inner=Inner(5))
    before, alive, read = [], [], StoredTensor.read

    def watched(stored):
        alive.append(sum(each() is not None for each in before))
        tensor = read(stored)
        before.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(StoredTensor, "read", watched)
    load_component(tmp_path / "part", Part)
    assert len(alive) >= 12
    assert max(alive) <= 1


def test_no_random_weights_are_drawn_before_the_stored_ones_are_read(tmp_path):
    part = saved(tmp_path / "part", inner=Inner(2))
    random = Drawn()
    with random:
        Part(PartConfig())
    assert random.parameters > 0, "built alone, it draws them"
    random.parameters = 0
    with random:
        loaded = load_component(tmp_path / "part", Part)
    assert random.parameters == 0
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in part.state_dict().items())


class WithNoise(nn.Module):
    """A fixed draw that no file holds."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, config.width)
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("noise", torch.empty(5).normal_(generator=generator), persistent=False)


def test_random_buffers_that_are_not_stored_are_drawn(tmp_path):
    part = WithNoise(PartConfig())
    save_component(part, tmp_path / "part")
    assert torch.equal(load_component(tmp_path / "part", WithNoise).noise, part.noise)


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    part = saved(tmp_path / "part", width=64, inner=Inner(0))
    loaded = load_component(tmp_path / "part", Part)
    assert loaded.output.weight is loaded.words.weight
    assert torch.equal(loaded.output.weight, part.words.weight)
    stored = (tmp_path / "part" / "model.safetensors").stat().st_size
    assert stored < 1.5 * 4 * 5 * 64 + 4 * 64 + 200


def test_a_part_that_writes_more_files_is_built_from_them(tmp_path):
    part = WithWords(PartConfig(2), ["red", "blue"])
    save_component(part, tmp_path / "part")
    loaded = load_component(tmp_path / "part", WithWords)
    assert loaded.words == ["red", "blue"]
    assert torch.equal(loaded.table.weight, part.table.weight)


def test_a_component_may_be_loaded_as_its_base_class(tmp_path):
    saved(tmp_path / "part")
    assert type(load_component(tmp_path / "part", nn.Module)) is Part


def test_saving_again_replaces_everything_that_was_there(tmp_path):
    save_component(WithWords(PartConfig(2), ["red"]), tmp_path / "part")
    part = saved(tmp_path / "part")
    assert set(files_of(tmp_path / "part")) == {"config.json", "model.safetensors"}
    assert torch.equal(load_component(tmp_path / "part", Part).mean, part.mean)


def test_missing_folders_above_are_made(tmp_path):
    saved(tmp_path / "runs" / "a" / "part")
    load_component(tmp_path / "runs" / "a" / "part", Part)


def test_a_failure_while_writing_weights_leaves_the_old_component(tmp_path, monkeypatch):
    saved(tmp_path / "part")
    before = files_of(tmp_path / "part")

    def fail(module, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(components, "save_model", fail)
        with pytest.raises(OSError, match="no space left"):
            saved(tmp_path / "part")
        with pytest.raises(OSError, match="no space left"):
            saved(tmp_path / "new")
    assert files_of(tmp_path / "part") == before
    assert not (tmp_path / "new").exists()
    assert "it has: part\n" in message_of(find_component, tmp_path, "new")
    part = saved(tmp_path / "new")
    assert torch.equal(load_component(tmp_path / "new", Part).mean, part.mean)
    assert not list(tmp_path.glob(".new*"))


def test_a_failure_in_the_extra_files_leaves_the_old_component(tmp_path):
    save_component(WithWords(PartConfig(2), ["red"]), tmp_path / "part")
    before = files_of(tmp_path / "part")
    with pytest.raises(RuntimeError, match="disk is full"):
        save_component(Unsaved(PartConfig(2), ["blue"]), tmp_path / "part")
    assert files_of(tmp_path / "part") == before


def test_missing_keys_are_named_and_counted(tmp_path):
    saved(tmp_path / "part", inner=Inner(0))
    rewrite_config(tmp_path / "part", config={"width": 3, "inner": {"depth": 3}})
    text = message_of(load_component, tmp_path / "part", Part)
    assert "missing: layers.0.bias, layers.0.weight, layers.1.bias and 3 more" in text
    assert "do not fit a Part" in text
    assert str(tmp_path / "part" / "model.safetensors") in text
    assert "not expected" not in text


def test_unexpected_keys_are_named_and_counted(tmp_path):
    saved(tmp_path / "part", inner=Inner(2))
    rewrite_config(tmp_path / "part", config={"width": 3, "inner": {"depth": 1}})
    text = message_of(load_component, tmp_path / "part", Part)
    assert "not expected: layers.1.bias, layers.1.weight" in text
    assert "missing" not in text


def test_missing_and_unexpected_keys_are_told_apart(tmp_path):
    saved(tmp_path / "part")
    text = message_of(load_weights, nn.Linear(3, 3), tmp_path / "part")
    assert "missing: bias, weight\n" in text
    assert "not expected: layers.0.bias, layers.0.weight, mean and 1 more" in text


def test_sizes_that_differ_are_given_with_both_numbers(tmp_path):
    saved(tmp_path / "part", width=3, inner=Inner(5))
    rewrite_config(tmp_path / "part", config={"width": 4, "inner": {"depth": 5}})
    text = message_of(load_component, tmp_path / "part", Part)
    assert "layers.0.bias (3,) instead of (4,)" in text
    assert "more" in text


def test_weights_that_do_not_fit_change_nothing_of_a_module_of_other_sizes(tmp_path):
    saved(tmp_path / "part", width=3)
    part = Part(PartConfig(width=4))
    before = {name: value.clone() for name, value in part.state_dict().items()}
    message_of(load_weights, part, tmp_path / "part")
    assert all(torch.equal(part.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_damaged_weights_are_refused_by_name(tmp_path, damage):
    saved(tmp_path / "part")
    file = tmp_path / "part" / "model.safetensors"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-10] if damage == "cut" else b"not a tensor file")
    assert str(file) in message_of(load_component, tmp_path / "part", Part)


def test_a_component_of_another_class_is_refused(tmp_path):
    saved(tmp_path / "part")
    assert "holds a Part, but a Other is needed" in message_of(load_component, tmp_path / "part", Other)


@pytest.mark.parametrize("path", ["json.JSONDecoder", "json.dumps", "torch.nn.functional.relu"])
def test_a_class_that_is_no_module_is_refused(tmp_path, path):
    saved(tmp_path / "part")
    rewrite_config(tmp_path / "part", **{"class": path})
    text = message_of(load_component, tmp_path / "part", nn.Module)
    assert repr(path) in text
    assert "no torch module" in text


@pytest.mark.parametrize("path", ["no_such_package.Part", "torch.nn.NoSuchLayer", "torch"])
def test_a_class_that_cannot_be_imported_is_named(tmp_path, path):
    saved(tmp_path / "part")
    rewrite_config(tmp_path / "part", **{"class": path})
    text = message_of(load_component, tmp_path / "part", nn.Module)
    assert repr(path) in text
    assert str(tmp_path / "part") in text


def test_settings_that_the_class_does_not_know_are_named(tmp_path):
    saved(tmp_path / "part")
    rewrite_config(tmp_path / "part", config={"breadth": 3})
    assert "breadth" in message_of(load_component, tmp_path / "part", Part)


def old_component(folder: Path) -> VideoLLM:
    """Write a video LLM as an earlier version did: other class path, other name of a setting, same weights."""
    toy_text_tokenizer().save_pretrained(folder.parent / "text")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VideoLLMConfig(
        language_model_config={"model_type": "llama", "max_position_embeddings": 64, **sizes},
        text_tokenizer=str(folder.parent / "text"),
        num_queries=2,
        feature_dim=4,
        max_length=64,
        generation_mode="query_causal",
    )
    module = VideoLLM(config, MSEHead)
    save_component(module, folder)
    described = json.loads((folder / "config.json").read_text())
    described["config"]["mechanism"] = described["config"].pop("generation_mode")
    rewrite_config(folder, **{"class": "divot_lightning.models.video_llm.VideoLLM", "config": described["config"]})
    return module


def test_a_component_of_an_earlier_version_is_read_by_its_new_names(tmp_path):
    module = old_component(tmp_path / "video_llm")
    loaded = load_component(tmp_path / "video_llm", VideoLLM)
    assert loaded.config.generation_mode == "query_causal"
    assert loaded.config == module.config
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())
    assert read_settings(tmp_path / "video_llm", VideoLLM, VideoLLMConfig).generation_mode == "query_causal"


def test_a_component_with_an_old_setting_under_the_new_class_is_refused_by_name(tmp_path):
    old_component(tmp_path / "video_llm")
    rewrite_config(tmp_path / "video_llm", **{"class": "divot_lightning.models.video_llm.model.VideoLLM"})
    assert "mechanism" in message_of(load_component, tmp_path / "video_llm", VideoLLM)


def test_a_class_that_left_without_a_successor_names_where_its_module_is_now(tmp_path):
    saved(tmp_path / "part")
    rewrite_config(tmp_path / "part", **{"class": "divot_lightning.heads.NoSuchHead"})
    text = message_of(load_component, tmp_path / "part", nn.Module)
    assert "divot_lightning.parts.heads.NoSuchHead" in text


INCOMPLETE = [
    '{"class": "torch.nn.Linear"}',
    '{"class": 3, "config": {}}',
    '{"class": "torch.nn.Linear", "config": [1]}',
]


@pytest.mark.parametrize("content", [None, "{", "[1]", *INCOMPLETE])
def test_a_folder_without_a_sound_config_is_no_component_folder(tmp_path, content):
    (tmp_path / "part").mkdir()
    if content is not None:
        (tmp_path / "part" / "config.json").write_text(content)
    text = message_of(load_component, tmp_path / "part", Part)
    assert f"{tmp_path / 'part'} is no component folder" in text


def test_a_component_is_found_in_its_run_and_by_its_own_folder(tmp_path):
    saved(tmp_path / "run" / "tokenizer")
    assert find_component(tmp_path / "run", "tokenizer") == tmp_path / "run" / "tokenizer"
    assert find_component(str(tmp_path / "run" / "tokenizer"), "tokenizer") == tmp_path / "run" / "tokenizer"


def recorded_run(root):
    saved(root / "first" / "tokenizer")
    (root / "second").mkdir()
    record_components(root / "second", {"tokenizer": root / "first" / "tokenizer"})
    return root / "second"


def test_a_recorded_component_is_followed_to_where_it_is(tmp_path):
    run = recorded_run(tmp_path)
    assert find_component(run, "tokenizer") == tmp_path / "first" / "tokenizer"
    assert read_record(run)["tokenizer"]["sha256"] == weights_sha256(tmp_path / "first" / "tokenizer")


def test_a_record_of_a_record_leads_to_the_first_run(tmp_path):
    second = recorded_run(tmp_path)
    (tmp_path / "third").mkdir()
    record_components(tmp_path / "third", {"tokenizer": find_component(second, "tokenizer")})
    shutil.rmtree(second)
    assert find_component(tmp_path / "third", "tokenizer") == tmp_path / "first" / "tokenizer"


def test_a_record_survives_moving_the_runs_together(tmp_path):
    recorded_run(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert find_component(tmp_path / "there" / "second", "tokenizer") == tmp_path / "there" / "first" / "tokenizer"


def test_a_record_holds_in_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded_run(Path("."))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_component("../second", "tokenizer").resolve() == tmp_path / "first" / "tokenizer"


def test_a_record_holds_through_a_link_to_the_run(tmp_path):
    run = recorded_run(tmp_path / "runs" / "toy")
    (tmp_path / "latest").symlink_to(run)
    found = find_component(tmp_path / "latest", "tokenizer")
    assert found.resolve() == tmp_path / "runs" / "toy" / "first" / "tokenizer"


def test_a_run_moved_alone_finds_what_stayed_where_it_was(tmp_path):
    recorded_run(tmp_path / "here")
    (tmp_path / "here/second").rename(tmp_path / "alone")
    assert find_component(tmp_path / "alone", "tokenizer") == tmp_path / "here/first/tokenizer"


@pytest.mark.parametrize("put", [shutil.copytree, lambda old, new: new.symlink_to(old)])
def test_a_recorded_component_may_be_put_into_the_run(tmp_path, put):
    run = recorded_run(tmp_path)
    (tmp_path / "first").rename(tmp_path / "away")
    text = message_of(find_component, run, "tokenizer")
    assert f"a link to it, at {run / 'tokenizer'}" in text
    put(tmp_path / "away/tokenizer", run / "tokenizer")
    assert find_component(run, "tokenizer") == run / "tokenizer"


def test_another_component_put_into_the_run_is_refused(tmp_path):
    run = recorded_run(tmp_path)
    saved(run / "tokenizer")
    assert f"another tokenizer than {run / 'tokenizer'} now holds" in message_of(find_component, run, "tokenizer")


def test_recorded_weights_that_changed_since_are_refused(tmp_path):
    run = recorded_run(tmp_path)
    old = weights_sha256(tmp_path / "first" / "tokenizer")
    saved(tmp_path / "first" / "tokenizer")
    text = message_of(find_component, run, "tokenizer")
    assert old[:16] in text
    assert weights_sha256(tmp_path / "first" / "tokenizer")[:16] in text
    assert str(tmp_path / "first" / "tokenizer") in text


def test_a_recorded_component_that_is_gone_is_named(tmp_path):
    run = recorded_run(tmp_path)
    shutil.rmtree(tmp_path / "first")
    text = message_of(find_component, run, "tokenizer")
    assert f"{tmp_path / 'first' / 'tokenizer'}, which is gone" in text


def test_a_run_that_does_not_exist_is_named(tmp_path):
    assert f"there is no run folder {tmp_path / 'nowhere'}" in message_of(find_component, tmp_path / "nowhere", "a")


def test_a_run_without_the_component_says_what_it_has(tmp_path):
    run = recorded_run(tmp_path)
    saved(run / "detokenizer")
    text = message_of(find_component, run, "video_llm")
    assert f"{run} has no video_llm; it has: detokenizer, tokenizer" in text
    assert "it has: no component" in message_of(find_component, make_folder(tmp_path / "empty"), "tokenizer")


def make_folder(folder):
    folder.mkdir()
    return folder


def test_a_run_that_uses_nothing_records_nothing(tmp_path):
    record_components(tmp_path, {})
    assert read_record(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["components.json"]
