import pytest
import torch
from lightning import Trainer

from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Text
from divot_lightning.training.export import ComponentExport
from divot_lightning.training.stages.instruction_tuning import InstructionTuning
from divot_optimizers.adamw import AdamWOptimizer

OPTIMIZER = AdamWOptimizer(lr=1e-2, warmup_steps=1)
LORA = LoRAConfig(rank=2, alpha=2, dropout=0.0)


def built(stage):
    stage.configure_model()
    return stage


@pytest.fixture
def pretrained(tokenizer_run, make_config, head, tmp_path):
    """Make the run folder of a pretraining, with weights as they are after some training."""

    def make(**changes):
        torch.manual_seed(2)
        video_llm = VideoLLM(make_config(**changes), head)
        video_llm.set_feature_statistics(torch.full((8,), 0.5), torch.full((8,), 2.0))
        for parameter in video_llm.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        save_component(video_llm, tmp_path / "llm_run" / "video_llm")
        record_components(tmp_path / "llm_run", {"tokenizer": tokenizer_run / "tokenizer"})
        return tmp_path / "llm_run"

    return make


def fit(stage, loader, folder, steps=6, **settings):
    options = {"max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}
    Trainer(**{**options, **settings}).fit(stage, loader)


def losses(video_llm, batch):
    torch.manual_seed(0)
    output = video_llm.eval()(batch["sequences"], torch.randn(2, 3, 8))
    return torch.stack([output.text_loss, output.head_loss])


@pytest.mark.parametrize("lora", [None, LORA])
def test_tuning_starts_where_pretraining_ended(pretrained, batches, lora):
    run = pretrained(lora=lora)
    before = load_component(run / "video_llm", VideoLLM)
    stage = built(InstructionTuning(str(run), OPTIMIZER))
    torch.testing.assert_close(losses(stage.video_llm, batches[0]), losses(before, batches[0]))
    assert stage.video_llm.config.lora == lora
    assert stage.video_llm.feature_mean_C.eq(0.5).all()


def test_new_adapters_sit_on_merged_weights(pretrained):
    run = pretrained(lora=LORA)
    before = load_component(run / "video_llm", VideoLLM)
    before.merge_lora()
    merged = before.causal_lm.model.layers[0].self_attn.q_proj.weight
    layer = built(InstructionTuning(str(run), OPTIMIZER)).video_llm.causal_lm.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(layer.base_layer.weight, merged)
    assert layer.lora_B["default"].weight.eq(0).all()


def test_adapters_can_be_added_to_a_model_trained_without(pretrained, loader, tmp_path):
    stage = built(InstructionTuning(str(pretrained()), OPTIMIZER, lora=LORA, max_length=30))
    assert stage.video_llm.config.max_length == 30
    fit(stage, loader, tmp_path)
    assert stage.video_llm.causal_lm.model.layers[0].mlp.up_proj.lora_B["default"].weight.ne(0).any()


@pytest.mark.parametrize("pretraining", [False, True])
def test_samples_may_share_rows_whatever_the_pretraining_did(pretrained, pretraining):
    run = pretrained(packing=pretraining)
    samples = [[Text("a red circle moves left", learn=True)], *[[Text("what ?", learn=True)]] * 3]
    stages = [built(InstructionTuning(str(run), OPTIMIZER, packing=choice)) for choice in (None, False, True)]
    rows = [len(stage.video_llm.sequences(samples).ids_BL) for stage in stages]
    assert rows == [len(stage.sequence_collator().lay_out(samples).ids_BL) for stage in stages]
    assert rows[1] == 4
    assert rows[2] < 4
    assert rows[0] == rows[2 if pretraining else 1]


PARTS = {
    "head": "head.",
    "input_projector": "input_projector.",
    "language_model": "language_model.",
    "queries": "queries.",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_stays_and_the_others_move(pretrained, loader, tmp_path, part):
    stage = built(InstructionTuning(str(pretrained()), OPTIMIZER, freeze=[part]))
    before = {name: value.clone() for name, value in stage.video_llm.named_parameters()}
    fit(stage, loader, tmp_path)
    for name, value in stage.video_llm.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith(PARTS[part]), name


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_tuned_model_and_its_tokenizer_are_exported(pretrained, tokenizer_run, batches, loader, tmp_path, lora):
    stage = built(InstructionTuning(str(pretrained(lora=lora)), OPTIMIZER))
    fit(stage, loader, tmp_path, callbacks=[ComponentExport(tmp_path / "tuned")])
    loaded = load_component(tmp_path / "tuned" / "video_llm", VideoLLM)
    torch.testing.assert_close(losses(loaded, batches[0]), losses(stage.video_llm, batches[0]))
    again = built(InstructionTuning(str(tmp_path / "tuned"), OPTIMIZER))
    assert again.tokenizer_folder.resolve() == (tokenizer_run / "tokenizer").resolve()


def test_an_unknown_part_is_named(pretrained):
    with pytest.raises(UserError, match=r"'tail'.*head, input_projector, language_model, queries"):
        InstructionTuning(str(pretrained()), OPTIMIZER, freeze=["tail"])


def test_a_run_without_video_llm_is_refused(tokenizer_run):
    with pytest.raises(UserError, match="has no video_llm"):
        InstructionTuning(str(tokenizer_run), OPTIMIZER)
