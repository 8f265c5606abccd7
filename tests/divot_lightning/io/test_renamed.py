"""Old names lead to names that exist, and names that were never ours stay as they are."""

import importlib
from importlib.util import find_spec

import pytest
import yaml

from divot_lightning.errors import UserError
from divot_lightning.io import old_recipes, renamed
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.parts.registries.recipe_parts import expand_recipe
from divot_lightning.training.recipe_files import recipe_names, recipes_dir


@pytest.mark.parametrize(("old", "new"), renamed.MODULES.items())
def test_a_new_module_exists_and_the_old_one_is_no_module_file(old, new):
    assert find_spec(new) is not None
    package, _, name = old.rpartition(".")
    try:
        left = find_spec(old)
    except ModuleNotFoundError:
        left = None
    assert left is None or left.submodule_search_locations, f"{old} still is a module: {name} of {package}"


@pytest.mark.parametrize("new", renamed.CLASSES.values())
def test_a_renamed_class_exists(new):
    module, _, name = new.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "divot_lightning.stages.llm_pretraining.LLMPretraining",
            "divot_lightning.training.stages.llm_pretraining.LLMPretraining",
        ),
        ("divot_lightning.models.video_llm.VideoLLM", "divot_lightning.models.video_llm.model.VideoLLM"),
        (
            "divot_lightning.stages.optimization.OptimizerSettings",
            "divot_optimizers.adamw.AdamWOptimizer",
        ),
        ("divot_lightning.training.optimizers.AdamWOptimizer", "divot_optimizers.adamw.AdamWOptimizer"),
        ("divot_lightning.training.optimizers.MuonOptimizer", "divot_optimizers.muon.MuonOptimizer"),
        ("divot_lightning.models.video_llm.model.VideoLLM", None),
        ("divot_datamodules.video_text.VideoTextData", None),
        ("my_package.stages.llm_pretraining.LLMPretraining", None),
        ("Plain", None),
    ],
)
def test_class_paths(old, new):
    assert renamed.new_class_path(old) == new


def test_every_new_class_path_of_the_table_can_be_imported():
    stages = {
        "captioning_pretraining": "CaptioningPretraining",
        "detokenizer_adaptation": "DetokenizerAdaptation",
        "detokenizer_refinement": "DetokenizerRefinement",
        "instruction_tuning": "InstructionTuning",
        "llm_pretraining": "LLMPretraining",
        "tokenizer_pretraining": "TokenizerPretraining",
    }
    olds = [f"divot_lightning.stages.{module}.{name}" for module, name in stages.items()]
    olds += ["divot_lightning.models.tokenizer.VideoTokenizer", "divot_lightning.models.detokenizer.VideoDetokenizer"]
    olds += ["divot_lightning.sharding.weight_average.WeightAverage", "divot_lightning.heads.GenerationHead"]
    for old in olds:
        module, _, name = renamed.new_class_path(old).rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_an_old_package_is_explained_by_where_its_modules_are_now():
    told = "the modules of divot_lightning.sharding are now in divot_lightning.checkpoint, "
    assert renamed.explain("divot_lightning.sharding").startswith(told)


@pytest.mark.parametrize("name", ["divot_lightning", "divot_lightning.models", "divot_datamodules", "torch", "", "x.Y"])
def test_what_was_not_renamed_is_not_explained(name):
    assert renamed.explain(name) == ""


@pytest.mark.parametrize(
    ("old", "told"),
    [
        (
            "from divot_lightning.heads import GenerationHead",
            "divot_lightning.heads is now divot_lightning.parts.heads",
        ),
        ("from divot_lightning.models.video_llm import VideoLLM", "is now divot_lightning.models.video_llm.model.Vid"),
        ("from divot_lightning.parts.heads import float32_island", "is now divot_lightning.parts.heads.force_float32"),
        ("import divot_lightning.models.tokenizer as m; m.VideoTokenizer", "video_tokenizer.VideoTokenizer"),
    ],
)
def test_an_import_of_an_old_name_is_explained(old, told):
    with pytest.raises((ImportError, AttributeError)) as raised:
        exec(old, {})
    assert told in renamed.explain_import_error(str(raised.value))


@pytest.mark.parametrize("old", ["import no_such_package", "from json import no_such_name"])
def test_an_import_of_a_stranger_is_not_explained(old):
    with pytest.raises(ImportError) as raised:
        exec(old, {})
    assert renamed.explain_import_error(str(raised.value)) == ""


def test_a_head_of_a_plug_in_that_imports_an_old_module_is_refused_with_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "head_of_last_year.py").write_text("from divot_lightning.heads import GenerationHead\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"divot_lightning\.heads is now divot_lightning\.parts\.heads"):
        HEADS.import_class("head_of_last_year.Head")


def test_a_setting_is_explained_only_where_its_owner_has_the_new_one():
    assert renamed.new_setting("mechanism", ["num_queries", "generation_mode"]) == "generation_mode"
    assert renamed.new_setting("mechanism", ["num_queries"]) is None
    assert renamed.new_setting("share", ["train_fraction"]) is None


OLD = """
model:
  class_path: divot_lightning.stages.llm_pretraining.LLMPretraining
  init_args: {llm: {mechanism: query_causal, num_queries: 4}}
data:
  class_path: divot_datamodules.video_text.VideoTextData
  init_args: {train_share: 0.5, max_bad_fraction: 0.1}
trainer:
  callbacks:
  - {class_path: divot_lightning.sharding.weight_average.WeightAverage}
"""


def test_every_old_name_of_a_recipe_is_reported_with_its_new_one():
    with pytest.raises(UserError) as raised:
        old_recipes.require_current_names(yaml.safe_load(OLD), "old.yaml")
    text = str(raised.value)
    for told in (
        "old.yaml",
        "LLMPretraining is now divot_lightning.training.stages.llm_pretraining.LLMPretraining",
        "model.init_args.llm.mechanism is now generation_mode",
        "data.init_args.train_share is now train_fraction",
        "data.init_args.max_bad_fraction is now max_skipped_fraction",
        "WeightAverage is now divot_lightning.checkpoint.weight_average.WeightAverage",
    ):
        assert told in text
    assert len(text.splitlines()) <= 5


@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: my_package.Stage, init_args: {terminal_share: 1, llm: {mechanism: x}}}",
        "data: {class_path: my_package.Data, init_args: {train_share: 1}}",
        "model: {init_args: {head: {class_path: my_package.Head, init_args: {mechanism: x}}}}",
        "terminal_share: 1",
        "a: [1, {train_share: 2}]",
    ],
)
def test_settings_of_other_classes_are_left_alone(text):
    old_recipes.require_current_names(yaml.safe_load(text), "recipe.yaml")


@pytest.mark.parametrize("text", ["data.train_share: 1", "data: {train_share: 1}", "data: {init_args.train_share: 1}"])
def test_every_spelling_of_an_old_setting_is_found(text):
    with pytest.raises(UserError, match="train_share is now train_fraction"):
        old_recipes.require_current_names(yaml.safe_load(text), "recipe.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "model: {init_args: {tokenizer: {vision: {frozen: false, width: 64}}}}",
        "model.tokenizer.vision: {frozen: false, width: 64}",
    ],
)
def test_settings_of_the_only_vision_encoder_there_was_are_refused_with_the_new_form(text):
    with pytest.raises(
        UserError, match=r"vision: \{\.\.\.\} is now \{class_path: clip, init_args: \{frozen: f"
    ) as raised:
        old_recipes.require_current_names(yaml.safe_load(text), "recipe.yaml")
    written = str(raised.value).splitlines()[1].partition(" is now ")[2]
    assert yaml.safe_load(written) == {"class_path": "clip", "init_args": {"frozen": False, "width": 64}}


@pytest.mark.parametrize(
    "vision",
    ["clip", "{class_path: clip}", "{class_path: my.Encoder, init_args: {width: 3}}", "{init_args: {width: 3}}"],
)
def test_a_vision_encoder_in_the_new_form_is_left_alone(vision):
    old_recipes.require_current_names(
        yaml.safe_load(f"model: {{init_args: {{tokenizer: {{vision: {vision}}}}}}}"), "recipe.yaml"
    )


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ({"init_args": {"optimizer": {"name": "muon", "lr": 0.1}}}, "class_path: muon"),
        ({"class_path": "divot_lightning.x.Stage", "init_args": {"optimizer": {"lr": 0.1}}}, "class_path: adamw"),
        ({"class_path": "divot_lightning.x.Stage", "init_args": {"optimizer": {"init_args": {"lr": 0.1}}}}, None),
        ({"class_path": "stranger.Stage", "init_args": {"optimizer": {"lr": 0.1}}}, None),
        ({"init_args": {"optimizer": {"lr": 0.1}}}, None),
    ],
)
def test_an_optimizer_in_the_old_form_is_refused_with_the_new_one(model, refused):
    if refused is None:
        old_recipes.require_current_names({"model": model}, "recipe.yaml")
        return
    with pytest.raises(UserError, match=rf"optimizer: \{{{refused}, init_args: \{{\.\.\.\}}\}}"):
        old_recipes.require_current_names({"model": model}, "recipe.yaml")


OLD_DETOKENIZER = """
model:
  class_path: divot_lightning.training.stages.tokenizer_pretraining.TokenizerPretraining
  init_args:
    detokenizer:
      latents: {kind: block_dct, scale: 1.5}
      denoiser: DENOISER
      noise_schedule: {snr_shift: 4.0}
      sampling: {steps: 2, eta: 0.0, spacing: trailing}
"""


@pytest.mark.parametrize(
    ("denoiser", "told"),
    [
        ("{width: 128}", "denoiser is now denoiser: video_dit, with its settings under init_args"),
        ("{diffusers_class: UNet3DConditionModel}", "diffusers_class is now denoiser: unet3d"),
    ],
)
def test_a_recipe_of_before_the_detokenizers_parts_is_refused_with_their_keys(denoiser, told):
    with pytest.raises(UserError) as raised:
        old_recipes.require_current_names(yaml.safe_load(OLD_DETOKENIZER.replace("DENOISER", denoiser)), "old.yaml")
    text = str(raised.value)
    for line in (told, "latents.kind is now latents: block_dct", "noise_schedule is now objective: v_prediction"):
        assert line in text
    assert "sampling.eta is now objective.init_args.eta" in text
    assert "sampling.spacing is now objective.init_args.spacing" in text
    assert len(text.splitlines()) <= 5


def test_a_recipe_with_the_detokenizers_parts_is_current():
    text = """
model:
  class_path: divot_lightning.training.stages.tokenizer_pretraining.TokenizerPretraining
  init_args:
    detokenizer:
      latents: {class_path: block_dct, init_args: {scale: 1.5}}
      denoiser: {class_path: video_dit, init_args: {width: 128}}
      objective: {class_path: v_prediction, init_args: {eta: 0.0, spacing: trailing}}
"""
    old_recipes.require_current_names(yaml.safe_load(text), "new.yaml")


@pytest.mark.parametrize(
    "name", [name for name in recipe_names() if not name.startswith(("ablations/", "experiments/"))]
)
def test_todays_recipes_hold_no_old_name(name):
    """With class_path and init_args, as a run writes them into its config.yaml."""
    recipe = yaml.safe_load((recipes_dir() / f"{name}.yaml").read_text())
    old_recipes.require_current_names(expand_recipe(recipe), name)
