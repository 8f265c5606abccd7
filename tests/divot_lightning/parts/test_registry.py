import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points

import pytest
from jsonargparse import ArgumentParser

from divot_heads.gmm import GMMHead
from divot_lightning.errors import UserError
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.registries import registry
from divot_lightning.parts.registries.kinds import HEADS, REGISTRIES, TASKS, find_registry
from divot_lightning.parts.registries.recipe_parts import expand_recipe, expand_words
from divot_lightning.parts.registries.registry import class_path
from divot_lightning.training.training_cli import RECIPE_MODE

BUILT_IN = {
    "autoregressive_flow": "divot_heads.autoregressive_flow.AutoregressiveFlowHead",
    "diffusion": "divot_heads.diffusion.DiffusionHead",
    "energy": "divot_heads.energy.EnergyHead",
    "flow_clip": "divot_heads.flow_clip.FlowClipHead",
    "flow_token": "divot_heads.flow_token.FlowTokenHead",
    "gmm": "divot_heads.gmm.GMMHead",
    "meanflow": "divot_heads.meanflow.MeanFlowHead",
    "mse": "divot_heads.mse.MSEHead",
}

HEAD_SOURCE = """
from divot_heads.mse import MSEHead

class {name}(MSEHead):
    '''The head {name}.'''

    def __init__(self, hidden_dim: int, feature_dim: int, strength: int = 1) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.strength = strength
"""


def in_fresh_python(code: str) -> str:
    """Run code in a new interpreter and return its output."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_built_in_heads_come_through_the_entry_points_of_our_distribution():
    ours = {head.name: head.class_path for head in HEADS.installed() if head.distribution == "divot-lightning"}
    assert ours == BUILT_IN


def test_listing_imports_no_head_and_no_torch():
    code = (
        "import sys; from divot_lightning.parts.registries.kinds import HEADS;"
        "names = [part.name for part in HEADS.installed()];"
        "assert 'gmm' in names; print([m for m in sys.modules if m.startswith(('torch', 'divot_heads'))])"
    )
    assert in_fresh_python(code).strip() == "[]"


def test_loading_one_head_imports_no_other():
    code = (
        "import sys; from divot_lightning.parts.registries.kinds import HEADS; HEADS.load('gmm');"
        "print(sorted(m for m in sys.modules if m in ('divot_heads.mse', 'divot_heads.gmm', 'divot_head_flow')))"
    )
    assert in_fresh_python(code).strip() == "['divot_heads.gmm']"


@pytest.mark.parametrize(("name", "path"), BUILT_IN.items())
def test_head_is_found_by_short_name_class_name_and_path(name, path):
    assert class_path(HEADS.load(name)) == path
    for given in (name, path.rpartition(".")[2], path):
        assert HEADS.resolve(given) == path


def test_strangers_head_is_found_with_its_distribution_and_version(install):
    install("stranger", "odd = stranger_head:OddHead", HEAD_SOURCE.format(name="OddHead"), version="2.3")
    (head,) = [head for head in HEADS.installed() if head.name == "odd"]
    assert (head.distribution, head.version, head.class_path) == ("stranger", "2.3", "stranger_head.OddHead")
    assert HEADS.load("odd").__name__ == "OddHead"


def test_parts_of_all_kinds_are_read_once_until_a_distribution_is_installed(install, monkeypatch):
    before = [head.name for head in HEADS.installed()]
    read = []
    monkeypatch.setattr(registry, "entry_points", lambda: read.append("all") or entry_points())
    assert [head.name for head in HEADS.installed()] == before
    assert read == []
    install("stranger", "odd = stranger_head:OddHead", HEAD_SOURCE.format(name="OddHead"))
    assert sorted([*before, "odd"]) == [head.name for head in HEADS.installed()]
    assert all(kind.installed() for kind in REGISTRIES.values())
    assert read == ["all"]


@pytest.mark.parametrize("find", [HEADS.load, HEADS.resolve])
def test_unknown_name_is_refused_with_what_is_installed_and_a_guess(find):
    with pytest.raises(UserError, match=r"head 'gmn' is not installed; installed: .*diffusion, .*gmm.* mean 'gmm'\?"):
        find("gmn")


def test_without_any_head_the_message_explains_how_to_install(monkeypatch):
    monkeypatch.setattr(registry, "_declared", lambda group, state_of_path: ())
    with pytest.raises(UserError, match=r"no head is installed, so 'gmm' is not there; run `pip install -e \.`"):
        HEADS.load("gmm")


@pytest.mark.parametrize("find", ["load", "resolve"])
@pytest.mark.parametrize("kind", REGISTRIES)
def test_one_name_from_two_distributions_is_refused_naming_both(install, kind, find):
    install("first-dist", "twin = twin_one:Twin", "class Twin: pass", kind=kind)
    install("second-dist", "twin = twin_two:Twin", "class Twin: pass", version="4.2", kind=kind)
    with pytest.raises(UserError, match=r"'twin' is declared by two distributions: first-dist 1\.0 and second-dist 4"):
        getattr(find_registry(kind), find)("twin")


def test_stranger_cannot_take_the_name_of_a_built_in_head(install):
    install("impostor", "gmm = impostor_head:GMMHead", HEAD_SOURCE.format(name="GMMHead"))
    with pytest.raises(UserError, match=r"divot-lightning .* and impostor"):
        HEADS.load("gmm")


def test_class_name_of_two_heads_is_refused_with_both_paths(install):
    install("first-dist", "one = same_one:SameHead", HEAD_SOURCE.format(name="SameHead"))
    install("second-dist", "two = same_two:SameHead", HEAD_SOURCE.format(name="SameHead"))
    with pytest.raises(UserError, match=r"'SameHead' is the class name of several.*same_one\.SameHead, same_two\.Same"):
        HEADS.resolve("SameHead")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_failed_import_is_reported_with_its_cause_and_distribution(install, kind):
    install("broken-dist", "broken = broken_part:Broken", "import not_there_at_all\n", kind=kind)
    with pytest.raises(
        UserError, match=r"'broken' of distribution broken-dist 1\.0 .*No module named 'not_there_at"
    ) as e:
        find_registry(kind).load("broken")
    assert isinstance(e.value.__cause__, ModuleNotFoundError)
    assert len(str(e.value).splitlines()) <= 5


def test_plugin_that_raises_anything_on_import_is_reported_the_same_way(install):
    install("syntax-dist", "syntax = syntax_head:SyntaxHead", "def broken(:\n")
    with pytest.raises(UserError, match=r"syntax-dist .*SyntaxError"):
        HEADS.load("syntax")


@pytest.mark.parametrize("source", ["class NoPart:\n    pass\n", "NoPart = 3\n"])
@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_class_that_is_no_part_of_the_kind_is_refused_with_its_path(install, kind, source):
    install("other-dist", "nopart = no_part:NoPart", source, kind=kind)
    with pytest.raises(UserError, match=rf"no_part\.NoPart is no {find_registry(kind).noun}"):
        find_registry(kind).load("nopart")


@pytest.mark.parametrize("path", ["divot_heads.nothing.Head", "divot_heads.gmm.NoSuchHead"])
def test_path_that_does_not_import_is_refused_with_its_cause(path):
    with pytest.raises(UserError, match=f"head '{path}' cannot be imported: .*Error") as caught:
        HEADS.import_class(path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_broken_part_does_not_affect_the_others(install, kind):
    parts = find_registry(kind)
    before = {part.name: parts.resolve(part.name) for part in parts.installed()}
    install("broken-dist", "broken = broken_part:Broken", "import not_there_at_all\n", kind=kind)
    assert {name: parts.resolve(name) for name in before} == before
    problems = {loaded.installed.name: loaded.problem for loaded in parts.load_every()}
    assert "not_there_at_all" in problems.pop("broken")
    assert problems == dict.fromkeys(before, "")


def test_built_head_has_its_class_widths_and_settings():
    head = HEADS.build("divot_heads.gmm.GMMHead", {"num_components": 3}, hidden_dim=8, feature_dim=4)
    assert (head.hidden_dim, head.feature_dim, head.init_args["num_components"]) == (8, 4, 3)
    again = HEADS.build(class_path(type(head)), json.loads(json.dumps(head.init_args)), hidden_dim=8, feature_dim=4)
    assert again.init_args == head.init_args


def test_setting_that_a_head_does_not_take_is_refused_with_those_it_takes():
    with pytest.raises(UserError, match=r"takes no setting num_component; it takes: num_components, variance_scale"):
        HEADS.build("gmm", {"num_component": 3}, hidden_dim=8, feature_dim=4)


class Stage:
    """A class that takes a head as the stages do."""

    def __init__(self, head: Callable[[int, int], GenerationHead]) -> None:
        self.head = head(8, 4)


def parse(*words: str) -> tuple[dict[str, object], GenerationHead, str]:
    """Parse a command line; return the recorded head, the built head and the dumped configuration."""
    parser = ArgumentParser(exit_on_error=False, parser_mode=RECIPE_MODE)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Stage, "model")
    words = expand_words(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config = parser.parse_args(words)
        head = parser.instantiate_classes(config).model.head
    return config.model.head.as_dict(), head, parser.dump(config)


@pytest.mark.parametrize("given", ["gmm", "GMMHead", "divot_heads.gmm.GMMHead"])
@pytest.mark.parametrize("where", ["option", "recipe", "recipe with class_path"])
def test_any_name_works_on_the_command_line_and_in_a_recipe(tmp_path, given, where):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model:\n  head: {given}\n" if where == "recipe" else f"model:\n  head:\n    class_path: {given}\n"
    )
    words = ["--model.head", given] if where == "option" else ["--config", str(recipe)]
    recorded, head, _ = parse(*words, "--model.head.num_components", "8")
    assert recorded["class_path"] == "divot_heads.gmm.GMMHead"
    assert class_path(type(head)) == "divot_heads.gmm.GMMHead"
    assert head.init_args == {**GMMHead(8, 4).init_args, "num_components": 8}


def test_recorded_configuration_gives_the_same_head(tmp_path):
    recipe = tmp_path / "config.yaml"
    recorded, head, dumped = parse("--model.head", "gmm", "--model.head.variance_scale", "0.5")
    recipe.write_text(dumped)
    recorded_again, again, _ = parse("--config", str(recipe))
    assert recorded_again == recorded
    assert again.init_args == head.init_args


def test_name_of_a_strangers_head_works_on_the_command_line(install):
    install("stranger", "odd = stranger_head:OddHead", HEAD_SOURCE.format(name="OddHead"))
    recorded, head, _ = parse("--model.head", "odd", "--model.head.strength", "5")
    assert recorded["class_path"] == class_path(type(head)) == "stranger_head.OddHead"
    assert head.init_args == {"strength": 5}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_kind_treats_an_unknown_part_alike(kind):
    registry = find_registry(kind)
    with pytest.raises(UserError, match=f"^{registry.noun} 'nowhere' is not installed"):
        registry.load("nowhere")


def test_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(UserError, match=f"'head'; kinds: {', '.join(REGISTRIES)}. Did you mean 'heads'"):
        find_registry("head")


@pytest.mark.parametrize(
    "written", ["gmm", "GMMHead", {"class_path": "gmm"}, {"class_path": "divot_heads.gmm.GMMHead"}]
)
def test_every_way_to_write_a_part_gives_the_same_settings(written):
    assert expand_recipe({"model": {"head": written}}) == {"model": {"head": {"class_path": BUILT_IN["gmm"]}}}


def test_settings_of_a_part_stay_beside_its_class_path():
    written = {"class_path": "gmm", "init_args": {"num_components": 3}}
    assert expand_recipe({"head": written})["head"] == {**written, "class_path": BUILT_IN["gmm"]}


@pytest.mark.parametrize("registry", [one for one in REGISTRIES.values() if one is not TASKS], ids=lambda one: one.kind)
def test_every_kind_is_written_by_name_or_class_path_and_a_misspelt_name_is_refused(registry):
    part = registry.installed()[0]
    assert expand_recipe({registry.key: part.name})[registry.key] == {"class_path": registry.resolve(part.name)}
    assert expand_words([f"--a.{registry.key}={part.name}"]) == [f"--a.{registry.key}={registry.resolve(part.name)}"]
    message = rf"^{registry.noun} '{part.name}x' is not installed; installed: .*Did you mean"
    for expand in (
        lambda name: expand_recipe({"a": [{registry.key: name}]}),
        lambda name: expand_recipe({registry.key: {"class_path": name, "init_args": {}}}),
        lambda name: expand_words([f"--a.{registry.key}", name]),
        lambda name: expand_words([f"--a.{registry.key}.class_path={name}"]),
    ):
        with pytest.raises(UserError, match=message):
            expand(f"{part.name}x")


@pytest.mark.parametrize("value", [None, 3, "null", {"num_components": 3}])
def test_what_names_no_part_is_left_as_it_is(value):
    assert expand_recipe({"head": value, "other": "gmm"}) == {"head": value, "other": "gmm"}


def test_only_the_value_of_a_part_is_expanded_on_the_command_line():
    words = [
        "--model.head=gmm",
        "--model.head.class_path",
        "gmm",
        "--model.head.num_components",
        "8",
        "gmm",
        "--run=gmm",
    ]
    expanded = expand_words(words)
    assert expanded[0] == f"--model.head={BUILT_IN['gmm']}"
    assert expanded[1:3] == ["--model.head.class_path", BUILT_IN["gmm"]]
    assert expanded[3:] == words[3:]


INCOMPLETE = """
from divot_lightning.parts.heads import GenerationHead

class HalfHead(GenerationHead):
    def loss(self, hidden_BQD, target_BQC, mask_BQ=None):
        return hidden_BQD.mean()

class NarrowHead(HalfHead):
    def __init__(self, width: int = 3) -> None:
        super().__init__(width, width)

    def sample(self, hidden_BQD, *, temperature=1.0, generator=None):
        return hidden_BQD
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", "incomplete_head.HalfHead does not define sample, as every head must"),
        ("narrow", "NarrowHead.__init__ does not take hidden_dim, feature_dim, which the suite supplies to every head"),
    ],
)
def test_a_class_that_lacks_a_method_or_an_argument_is_refused_before_it_is_built(install, name, message):
    install("incomplete", "half = incomplete_head:HalfHead\nnarrow = incomplete_head:NarrowHead", INCOMPLETE)
    with pytest.raises(UserError, match=re.escape(message)):
        HEADS.load(name)
    (listed,) = [part for part in HEADS.load_every() if part.installed.name == name]
    assert message in listed.problem
