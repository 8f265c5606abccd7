"""Runs, their de-tokenizers and heads are found in an experiment and one by one."""

import shutil

import pytest

from divot_lightning.demo.systems import find_systems, preferred
from divot_lightning.errors import UserError


def test_an_experiment_shows_its_runs_with_the_refined_detokenizer(experiment):
    systems = {system.name: system for system in find_systems([str(experiment)])}
    assert list(systems) == ["detokenizer", "instruction", "llm_gmm_0", "llm_gmm_1", "llm_mse_0", "stories"]
    assert systems["detokenizer"].abilities == {"reconstruct"}
    assert systems["llm_gmm_0"].abilities == {"ask", "generate", "story"}
    assert {name: system.head for name, system in systems.items() if system.head} == {
        "instruction": "gmm",
        "llm_gmm_0": "gmm",
        "llm_gmm_1": "gmm",
        "llm_mse_0": "mse",
        "stories": "mse",
    }
    assert systems["llm_mse_0"].detokenizer == "detokenizer"


def test_what_is_chosen_first_was_trained_for_it_and_has_each_head_once(experiment):
    assert preferred(find_systems([str(experiment)])) == {
        "reconstruct": ["detokenizer"],
        "ask": ["instruction"],
        "generate": ["llm_gmm_0", "llm_mse_0"],
        "story": ["stories"],
    }


def test_runs_with_another_tokenizer_come_last_and_are_not_chosen(experiment, llm_run, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from divot_lightning.checkpoint.run_components import record_components

    folder = shutil.copytree(experiment, tmp_path / "experiment")
    control = folder / "a_control"
    shutil.copytree(llm_run / "tokenizer", control / "tokenizer")
    file = control / "tokenizer" / "model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)
    for name in ("video_llm", "detokenizer"):
        shutil.copytree(llm_run / name, folder / f"a_control_{name}" / name)
        record_components(folder / f"a_control_{name}", {"tokenizer": control / "tokenizer"})
    systems = find_systems([str(folder)])
    assert [system.name for system in systems][-2:] == ["a_control_detokenizer", "a_control_video_llm"]
    assert systems[-1].detokenizer == "a_control_detokenizer"
    assert preferred(systems)["generate"] == ["llm_gmm_0", "llm_mse_0"]


def test_runs_are_given_one_by_one_with_a_detokenizer(experiment, llm_run):
    names = [str(experiment / "llm_gmm_0"), str(experiment / "llm_mse_0")]
    systems = find_systems(names, str(experiment / "detokenizer"))
    assert [(system.name, system.detokenizer) for system in systems] == [
        ("llm_gmm_0", "detokenizer"),
        ("llm_mse_0", "detokenizer"),
    ]
    (alone,) = find_systems([str(llm_run)])
    assert alone.abilities == {"reconstruct", "ask", "generate", "story"}
    assert alone.detokenizer == ""


def test_runs_of_one_name_are_numbered(llm_run):
    names = [system.name for system in find_systems([str(llm_run), str(llm_run)])]
    assert names == [f"{llm_run.name} (1)", f"{llm_run.name} (2)"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer, de-tokenizer or video LLM"):
        find_systems([str(tmp_path)])
    with pytest.raises(UserError, match="there is no run folder"):
        find_systems([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"config": {"head": "gmm"}}'])
def test_a_damaged_config_of_a_video_llm_is_named(llm_run, tmp_path, content):
    run = shutil.copytree(llm_run, tmp_path / "run")
    (run / "video_llm" / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"video_llm/config\.json (is damaged|names no generation head)"):
        find_systems([str(run)])


def test_a_detokenizer_that_is_none_is_refused_before_the_page_is_served(llm_run, tmp_path):
    for folder, message in ((tmp_path, "has no detokenizer"), (tmp_path / "nowhere", "there is no run folder")):
        with pytest.raises(UserError, match=message):
            find_systems([str(llm_run)], str(folder))
    (system,) = find_systems([str(llm_run)], str(llm_run / "detokenizer"))  # a component folder
    assert "reconstruct" in system.abilities
