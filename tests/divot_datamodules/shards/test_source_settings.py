from dataclasses import replace
from itertools import islice

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from divot_datamodules.decoding.samples import SampleDecoder, tokenizer_items
from divot_datamodules.loading.batch_reader import LoadedSource
from divot_datamodules.shards.source_settings import (
    OrderConfig,
    SourceConfig,
    facts_of,
    items_of,
    listed_sources,
    make_plan,
)
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError
from divot_lightning.parts.registries.recipe_parts import expand_recipe

ORDER = OrderConfig(batch_size=4, exact=False, seed=1, streams=2, shuffle_buffer=8)


def opened(*sources):
    return [LoadedSource(source, SampleDecoder(), tokenizer_items) for source in sources]


def test_paths_alone_are_one_source_and_beside_sources_each_is_its_own():
    assert listed_sources("train", None) == []
    assert listed_sources("train", "a") == [SourceConfig("a")]
    assert listed_sources("train", ["a", "b"]) == [SourceConfig(["a", "b"])]
    assert listed_sources("train", ["a", SourceConfig("b", weight=2.0)]) == [
        SourceConfig("a"),
        SourceConfig("b", weight=2.0),
    ]
    assert [source.name for source in (SourceConfig("a"), SourceConfig(["a"]), SourceConfig(["a", "b"]))] == [
        "a",
        "a",
        "a ...",
    ]


@pytest.mark.parametrize("setting", [[], [SourceConfig([])]])
def test_a_list_of_nothing_is_refused(setting):
    with pytest.raises(UserError, match=r"data\.train is an empty list"):
        listed_sources("train", setting)


def test_the_command_line_takes_sources():
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(VideoTextData, "data")
    words = [
        '--data.train=[{"path": "a.tar", "weight": 2, "tasks": {"caption": 1}}, "b.tar"]',
        "--data.tasks={generate: 1}",
    ]
    data = parser.instantiate(parser.parse_args(words)).data
    assert data.sources["train"] == [SourceConfig("a.tar", weight=2.0, tasks={"caption": 1.0}), SourceConfig("b.tar")]
    assert [list(items.keywords["mixture"].weights) for items in data.items["train"]] == [["caption"], ["generate"]]


def test_tasks_are_for_all_sources_or_for_none():
    sources = [SourceConfig("a", tasks={"caption": 1.0}), SourceConfig("b")]
    with pytest.raises(UserError, match=r"the source 'b' of data\.train has no tasks"):
        items_of("train", sources, None, "pretraining")
    with_texts = items_of("train", sources, {"generate": 1.0}, "instruction")
    assert [items.keywords["mixture"].template for items in with_texts] == ["instruction", "instruction"]
    assert items_of("train", [SourceConfig("a")], None, "pretraining") == [tokenizer_items]


def test_sources_share_steps_or_each_has_its_own(counted_source):
    sources = [SourceConfig("a", weight=1.0), SourceConfig("b", weight=3.0)]
    shared = make_plan(sources, opened(counted_source([5]), counted_source([9])), ORDER)
    assert (shared.batch_sizes, shared.weights) == ((4,), (1.0, 3.0))
    own = make_plan(
        [SourceConfig("a", batch_size=2), SourceConfig("b", batch_size=6)],
        opened(counted_source([5]), counted_source([9])),
        ORDER,
    )
    assert own.batch_sizes == (2, 6)
    assert {(len({index.source for index in own.batch(step)}), len(own.batch(step))) for step in range(6)} == {
        (1, 2),
        (1, 6),
    }
    with pytest.raises(UserError, match="the source 'b' has no batch_size, but 1 other"):
        make_plan(
            [SourceConfig("a", batch_size=2), SourceConfig("b")],
            opened(counted_source([5]), counted_source([9])),
            ORDER,
        )


def test_layouts_without_an_order_are_refused(counted_source):
    with pytest.raises(UserError, match=r"weight -1\.0"):
        make_plan([SourceConfig("a", weight=-1.0)], opened(counted_source([5])), ORDER)
    two = opened(counted_source([5]), counted_source([9]))
    with pytest.raises(UserError, match="2 sources are mixed by weight, so no epoch covers each exactly once"):
        make_plan([SourceConfig("a"), SourceConfig("b")], two, replace(ORDER, exact=True))
    with pytest.raises(UserError, match="holds no samples"):
        make_plan([SourceConfig("a")], opened(counted_source([0, 0])), ORDER)


def test_equal_sources_are_passed_over_in_different_orders(counted_source):
    plan = make_plan([SourceConfig("a"), SourceConfig("a")], opened(counted_source([50]), counted_source([50])), ORDER)
    first, second = ([order.locate(index)[2] for index in range(50)] for order in plan.sources)
    assert sorted(first) == sorted(second)
    assert first != second


def test_facts_of_a_source(counted_source):
    facts = facts_of(SourceConfig("a"), counted_source([3, 4]))
    assert (facts.name, facts.shards, facts.samples) == ("a", 2, 7)


def test_a_path_and_the_source_part_that_it_means_are_the_same_data(tmp_path, video_shards):
    tars = str(video_shards(shards=3, samples=2))
    sources = {
        "path": tars,
        "part": [{"source": {"class_path": "tar", "init_args": {"path": tars}}}],
        "other": [{"source": {"class_path": "tar", "init_args": {"path": [f"{tars}/000.tar", f"{tars}/001.tar"]}}}],
    }
    data = {}
    for name, train in sources.items():
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(VideoTextData, "data")
        given = expand_recipe({"data": {"train": train, "batch_size": 2, "index_folder": str(tmp_path / "index")}})
        data[name] = parser.instantiate(parser.parse_object(given)).data
        data[name].setup("fit")
    assert data["part"].sizes() == {"train": [(tars, 3, 6)]}
    batches = {name: [batch["key"] for batch in islice(one.train_dataloader(), 4)] for name, one in data.items()}
    assert batches["part"] == batches["path"]
    state = data["path"].state_dict()
    assert state["step"] == 3
    data["part"].load_state_dict(state)
    assert next(iter(data["part"].train_dataloader()))["key"] == batches["path"][3]
    with pytest.raises(UserError, match=r"4 samples in 2 shards; in the checkpoint .*: 6 in 3"):
        data["other"].load_state_dict(state)


def test_phrases_of_a_recipe_come_back_from_its_saved_config():
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(VideoTextData, "data")
    phrases = ["Film this: {}", "{}", "yes {}"]
    tasks = {"caption": 2.0, "generate": {"weight": 1.0, "init_args": {"video_prompts": phrases}}}
    entry = {"path": "a.tar", "tasks": {"question": {"init_args": {"prompts": ["Answer: {}"]}}}}
    given = parser.parse_object({"data": {"tasks": tasks, "train": [entry], "template": "USER: {} ASSISTANT:"}})
    again = parser.parse_string(parser.dump(given))
    for config in (given, again):
        assert config.data.tasks == tasks
        assert config.data.template == "USER: {} ASSISTANT:"
        assert config.data.train[0].tasks == entry["tasks"]
