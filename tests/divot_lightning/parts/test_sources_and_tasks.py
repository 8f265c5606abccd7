"""Sources and tasks come in by the same door as heads, and get the same treatment."""

import subprocess
import sys

import pytest

from divot_datamodules.shards.source_settings import SourceConfig
from divot_datamodules.tasks.mixture import TaskMixture
from divot_lightning.errors import UserError
from divot_lightning.parts.registries.kinds import SOURCES, TASKS
from divot_lightning.parts.registries.recipe_parts import expand_recipe, expand_words

TASK = """
from divot_lightning.parts.segments import Text
from divot_lightning.parts.tasks import Task

class EchoTask(Task):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        return [Text("echo", learn=True)]
"""


def test_built_in_sources_and_tasks_come_through_the_entry_points_of_our_distribution():
    ours = {
        kind.kind: {part.name for part in kind.installed() if part.distribution == "divot-lightning"}
        for kind in (SOURCES, TASKS)
    }
    tasks = {"caption", "generate", "question", "conversation", "story", "toy_open_generate"}
    assert ours == {"sources": {"tar", "jsonl"}, "tasks": tasks}


def test_listing_imports_neither_torch_nor_the_parts():
    code = (
        "import sys; from divot_lightning.parts.registries.kinds import SOURCES, TASKS;"
        "SOURCES.installed(); TASKS.installed();"
        "print([m for m in sys.modules if m.startswith(('torch', 'divot_datamodules'))])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "[]"


def test_a_strangers_task_is_used_by_its_short_name_and_by_its_class_path(install):
    install("stranger", "echo = stranger_task:EchoTask", TASK, kind="tasks")
    mixture = TaskMixture({"echo": 1.0, "stranger_task.EchoTask": {"weight": 2.0}})
    assert [type(task).__name__ for task in mixture.tasks.values()] == ["EchoTask", "EchoTask"]
    assert mixture.weights == {"echo": 1.0, "stranger_task.EchoTask": 2.0}


def test_a_name_of_two_tasks_is_refused_naming_both_distributions(install):
    install("impostor", "caption = impostor_task:EchoTask", TASK, kind="tasks")
    with pytest.raises(UserError, match=r"'caption' is declared by two distributions: divot-lightning .* impostor"):
        TaskMixture({"caption": 1.0})
    assert TaskMixture({"question": 1.0}).weights == {"question": 1.0}


def test_a_broken_task_is_reported_with_its_cause_and_the_others_work(install):
    install("broken", "broken = broken_task:BrokenTask", "import not_there_at_all\n", kind="tasks")
    with pytest.raises(UserError, match=r"task 'broken' of distribution broken 1\.0 .*not_there_at_all"):
        TaskMixture({"broken": 1.0, "caption": 1.0})
    assert TaskMixture({"caption": 1.0}).weights == {"caption": 1.0}


def test_a_class_that_is_no_task_is_refused(install):
    install("other", "none = no_task:NoTask", "class NoTask:\n    pass\n", kind="tasks")
    with pytest.raises(UserError, match=r"no_task\.NoTask is no task.*\nEvery task is a subclass"):
        TaskMixture({"none": 1.0})


def test_the_short_name_of_a_source_becomes_its_class_path_in_a_recipe():
    entry = {"source": {"class_path": "jsonl", "init_args": {"path": "a.jsonl"}}, "weight": 2.0}
    path = "divot_datamodules.shards.jsonl_source.JsonlSource"
    expanded = expand_recipe({"data": {"init_args": {"train": ["a.tar", entry]}}})["data"]["init_args"]["train"]
    assert expanded == ["a.tar", {"source": {"class_path": path, "init_args": {"path": "a.jsonl"}}, "weight": 2.0}]


def test_tasks_are_no_part_but_a_mapping_of_names():
    words = ["--data.tasks", "caption: 1.0", "--data.tasks={generate: 2}"]
    assert expand_words(words) == words
    assert expand_recipe({"tasks": {"caption": 1.0}}) == {"tasks": {"caption": 1.0}}


def test_a_misspelt_source_is_refused_with_a_guess():
    with pytest.raises(UserError, match=r"source 'jsnl' is not installed; installed: .*mean 'jsonl'\?"):
        expand_recipe({"train": [{"source": {"class_path": "jsnl"}}]})


def test_a_broken_source_is_reported_when_it_is_named_and_the_others_work(install):
    install("broken", "bad = broken_source:BadSource", "raise ValueError('no library')\n", kind="sources")
    with pytest.raises(UserError, match=r"source 'bad' of distribution broken 1\.0 .*no library"):
        expand_recipe({"train": [{"source": "bad"}]})
    assert SOURCES.resolve("tar") == "divot_datamodules.shards.tar_source.TarSource"


def test_an_entry_of_the_data_has_a_path_or_a_source():
    with pytest.raises(UserError, match="neither path nor source"):
        SourceConfig(weight=2.0)
    with pytest.raises(UserError, match=r"both path 'a\.tar' and source"):
        SourceConfig("a.tar", source=lambda: None)
    with pytest.raises(UserError, match="media_root 'm', which is for paths of jsonl lists"):
        SourceConfig(source=lambda: None, media_root="m")
