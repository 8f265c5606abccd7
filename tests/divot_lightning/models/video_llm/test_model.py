import copy
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from divot_heads.gmm import GMMHead
from divot_heads.mse import MSEHead
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES, Clips, Text
from tests.divot_lightning.models.video_llm.tiny_video_llm import (
    GENERATE,
    GENERATION_MODES,
    LORA,
    READ,
    STORY,
    TINY,
    WORDS,
    C,
    Q,
    features,
    losses,
    num_clips,
)


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_two_samples_are_memorised(make, generation_mode):
    video_llm = make(generation_mode=generation_mode)
    target = features(2)
    video_llm.set_feature_statistics(target.mean((0, 1)), target.std((0, 1)))
    optimizer = torch.optim.AdamW(video_llm.parameters(), lr=5e-3)
    for _ in range(100):
        output = losses(video_llm, [READ, GENERATE], target)
        (output.text_loss + output.head_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert output.text_loss < 0.1
    assert output.head_loss < 0.01
    assert video_llm.generate_text([READ[:1]], target[:1], max_new_tokens=9) == ["a red circle moves left"]
    generated = video_llm.generate_features([GENERATE])
    torch.testing.assert_close(generated, target[1:], atol=0.3, rtol=0)


def test_text_loss_is_the_models_own_next_word_loss(make):
    video_llm = make()
    ids_BL = video_llm.sequences([WORDS]).ids_BL
    own = video_llm.causal_lm(input_ids=ids_BL, labels=ids_BL).loss
    output = losses(video_llm, [WORDS], None)
    torch.testing.assert_close(output.text_loss, own)
    assert output.num_text_targets == 6  # five words and the end
    assert output.head_loss == 0


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_head_loss_is_the_heads_loss_on_hidden_states_of_each_clip(make, generation_mode):
    video_llm, clips = make(generation_mode=generation_mode), features(3)
    batch = video_llm.sequences([STORY])
    hidden_BLD = video_llm.hidden_states(batch, video_llm.embed(batch, clips))
    role = 5 if generation_mode == "autoregressive" else 4
    columns = [i for i, value in enumerate(batch.token_kind_BL[0].tolist()) if value == role]
    shift = 1 if generation_mode == "autoregressive" else 0
    own = []
    for clip in range(3):
        rows = [column - shift for column in columns[clip * Q : (clip + 1) * Q]]
        own.append(functional.mse_loss(video_llm.head.sample(hidden_BLD[:, rows])[0], clips[clip]))
    torch.testing.assert_close(losses(video_llm, [STORY], clips).head_loss, torch.stack(own).mean())


class LooksAtTheWholeClip(MSEHead):
    """A joint head: its prediction for a token depends on the hidden states of all tokens of the clip."""

    def loss(self, hidden_BQD, target_BQC, mask_BQ=None):
        self.predicted = self.sample(hidden_BQD)
        return super().loss(hidden_BQD + hidden_BQD.mean(dim=1, keepdim=True), target_BQC, mask_BQ)

    def sample(self, hidden_BQD, *, temperature=1.0, generator=None):
        return super().sample(hidden_BQD + hidden_BQD.mean(dim=1, keepdim=True))


def test_a_joint_head_learns_no_token_from_later_true_features(make):
    """Autoregressively, the state after a token has seen the token's true feature: a head must not get it before."""
    video_llm = make(generation_mode="autoregressive", head=LooksAtTheWholeClip)
    clips = features(2)
    predictions = []
    for later in (clips, torch.cat([clips[:, :1], clips[:, 1:] + 5], dim=1)):
        losses(video_llm, [GENERATE, GENERATE], later)
        predictions.append(video_llm.head.predicted.view(2, Q, C))
    torch.testing.assert_close(predictions[0][:, :2], predictions[1][:, :2])
    assert not torch.allclose(predictions[0][:, 2], predictions[1][:, 2])


def test_a_joint_head_is_trained_as_it_samples_feature_by_feature(make):
    """With generated features as targets, the loss is 0 only if training gives the head the input of generation."""
    video_llm = make(generation_mode="autoregressive", head=LooksAtTheWholeClip)
    generated = video_llm.generate_features([GENERATE])
    assert losses(video_llm, [GENERATE], generated).head_loss < 1e-10


@pytest.mark.parametrize("generation_mode", ["query_bidirectional", "query_causal"])
def test_a_joint_head_gets_all_tokens_of_a_clip_with_queries(make, generation_mode):
    video_llm = make(generation_mode=generation_mode, head=LooksAtTheWholeClip)
    generated = video_llm.generate_features([GENERATE])
    assert losses(video_llm, [GENERATE], generated).head_loss < 1e-10
    assert video_llm.head.predicted.shape == (1, Q, C)


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_padding_changes_no_hidden_state(make, generation_mode):
    video_llm = make(generation_mode=generation_mode)

    def hidden(*samples):
        batch = video_llm.sequences(list(samples))
        return video_llm.hidden_states(batch, video_llm.embed(batch, features(3)[-num_clips(*samples) :]))

    alone, beside = hidden(GENERATE), hidden(READ, GENERATE, [Text("a " * 30, learn=False), Clips(1, "read")])[1]
    torch.testing.assert_close(beside[: alone.shape[1]], hidden_of_second_clip(video_llm), atol=1e-5, rtol=1e-4)


def hidden_of_second_clip(video_llm):
    batch = video_llm.sequences([GENERATE])
    return video_llm.hidden_states(batch, video_llm.embed(batch, features(3)[1:2]))[0]


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_later_positions_do_not_change_earlier_predictions(make, generation_mode):
    video_llm = make(generation_mode=generation_mode)
    logits = []
    for ending in ("a blue square moves right", "a blue circle moves left"):
        batch = video_llm.sequences([[*STORY[:2], Text(ending, True), *STORY[3:]]])
        logits.append(video_llm.logits(video_llm.hidden_states(batch, video_llm.embed(batch, features(3)))))
    differing = batch.ids_BL.shape[1] - next(
        i for i, same in enumerate(reversed((logits[0] == logits[1]).all(dim=-1)[0].tolist())) if same
    )
    changed_word = video_llm.sequences([[*STORY[:2], Text("a blue", True)]]).ids_BL.shape[1] - 1
    assert differing == changed_word
    torch.testing.assert_close(logits[0][:, :changed_word], logits[1][:, :changed_word])


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("samples", [[], [WORDS], [READ], [GENERATE], [READ, GENERATE, STORY]])
def test_every_trainable_weight_gets_a_gradient_from_every_batch(make, samples, lora):
    video_llm = make(lora=lora).train()
    output = losses(video_llm, samples, features(num_clips(*samples)) if num_clips(*samples) else None)
    (output.text_loss + output.head_loss).backward()
    assert [name for name, value in video_llm.named_parameters() if value.requires_grad and value.grad is None] == []


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_a_batch_without_clips_to_generate_runs_the_head_on_one_token(make, generation_mode):
    """A whole clip would cost as much as training on it, and its loss would count nothing."""
    video_llm, shapes = make(generation_mode=generation_mode).train(), []
    video_llm.head.register_forward_pre_hook(lambda head, inputs: shapes.append([each.shape[:2] for each in inputs]))
    output = losses(video_llm, [READ], features(1))
    output.head_loss.backward()
    assert shapes == [[(1, 1), (1, 1)]]
    assert all(value.grad.count_nonzero() == 0 for value in video_llm.head.parameters())


def test_gradients_reach_projector_queries_and_head(make):
    video_llm = make().train()
    output = losses(video_llm, [READ, GENERATE], features(2))
    (output.text_loss + output.head_loss).backward()
    for part in (video_llm.input_projector, video_llm.queries, video_llm.head):
        assert all(parameter.grad.abs().sum() > 0 for parameter in part.parameters())


@pytest.mark.parametrize("model", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_text_with_a_cache_equals_text_without(make, generation_mode, model):
    window = {"sliding_window": 6} if model == "mistral" else {}
    video_llm = make(generation_mode=generation_mode, model=model, language_model=window)
    prompts = [[*STORY[:3]], [Text("what", False)], [Clips(2, "read"), Text("what ?", False)]]
    clips = features(3)
    with torch.no_grad():
        slow = []
        for prompt, given in zip(prompts, [clips[:1], clips[:0], clips[1:]], strict=True):
            words = ""
            for _ in range(6):
                batch = video_llm.sequences([[*prompt, Text(words, False)]], prompt=True)
                hidden = video_llm.hidden_states(batch, video_llm.embed(batch, given))[:, -1]
                scores = video_llm.logits(hidden)[0]
                scores[video_llm.special.clip_markers] = -torch.inf
                if scores.argmax() == video_llm.special.end:
                    break
                words = f"{words} {video_llm.text_tokenizer.convert_ids_to_tokens(int(scores.argmax()))}".strip()
            slow.append(words)
    vocabulary = set(video_llm.text_tokenizer.all_special_tokens)
    slow = [" ".join(word for word in words.split() if word not in vocabulary) for words in slow]
    assert video_llm.generate_text(prompts, clips, max_new_tokens=6) == slow


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_generated_features_are_what_the_head_predicts_in_training(make, generation_mode):
    video_llm = make(generation_mode=generation_mode)
    video_llm.set_feature_statistics(torch.full((C,), 0.3), torch.full((C,), 2.0))
    prompts = [STORY, [Text("a", False), Clips(1, "generate")]]
    first = features(1)
    generated = video_llm.generate_features(prompts, first)
    assert generated.shape == (3, Q, C)
    output = losses(video_llm, [STORY], torch.cat([first, generated[:2]]))
    batch = video_llm.sequences([STORY])
    normal = video_llm.normalise(torch.cat([first, generated[:2]]), 3)
    hidden_BLD = video_llm.hidden_states(batch, video_llm.embed(batch, normal))
    own = functional.mse_loss(
        video_llm.head.sample(hidden_BLD[:, predicting(batch, generation_mode)[:Q]])[0], normal[0]
    )
    torch.testing.assert_close(output.head_loss, own.detach() / 3, atol=1e-5, rtol=1e-4)  # the other two are exact


def predicting(batch, generation_mode):
    role, shift = (5, 1) if generation_mode == "autoregressive" else (4, 0)
    return [i - shift for i, value in enumerate(batch.token_kind_BL[0].tolist()) if value == role]


def test_features_are_normalised_on_the_way_in_and_denormalised_on_the_way_out(make):
    plain = make()
    scaled = copy.deepcopy(plain)
    scaled.set_feature_statistics(torch.full((C,), 4.0), torch.full((C,), 3.0))
    inputs = [[*READ, *GENERATE]]
    first, second = losses(plain, inputs, features(2)), losses(scaled, inputs, features(2) * 3 + 4)
    torch.testing.assert_close(first.text_loss, second.text_loss)
    torch.testing.assert_close(first.head_loss, second.head_loss, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.generate_features([GENERATE]) * 3 + 4, scaled.generate_features([GENERATE]))


def test_a_seed_gives_the_same_clips(make):
    video_llm = make(head=partial(GMMHead, num_components=2))

    def sample(seed):
        return video_llm.generate_features([GENERATE], generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_sampled_text_follows_seed_and_temperature(make):
    video_llm = make()

    def text(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        return video_llm.generate_text([WORDS] * 8, None, max_new_tokens=4, generator=generator, **settings)

    greedy = video_llm.generate_text([WORDS] * 8, None, max_new_tokens=4)
    assert text(1, temperature=1.0) == text(1, temperature=1.0) != text(2, temperature=1.0)
    assert text(1, temperature=5.0, top_p=1e-6) == greedy
    assert not any(name in answer for name in SPECIAL_TOKEN_NAMES for answer in text(3, temperature=9.0))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("tied", [False, True])
def test_a_stored_model_is_the_same_model(make, tmp_path, lora, tied):
    video_llm = make(
        head=partial(GMMHead, num_components=2),
        lora=lora,
        language_model={"tie_word_embeddings": tied},
    )
    for parameter in video_llm.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    video_llm.set_feature_statistics(torch.full((C,), 0.5), torch.full((C,), 2.0))
    save_component(video_llm, tmp_path / "video_llm")
    loaded = load_component(tmp_path / "video_llm", VideoLLM).eval()
    assert loaded.config == video_llm.config
    first, second = (losses(model, [READ, GENERATE], features(2)) for model in (video_llm, loaded))
    assert torch.equal(first.text_loss, second.text_loss)
    clips = [m.generate_features([GENERATE], generator=torch.Generator().manual_seed(0)) for m in (video_llm, loaded)]
    assert torch.equal(*clips)


def test_adapters_are_added_without_a_warning(make, recwarn):
    make(lora=LoRAConfig(rank=2, alpha=4))
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)] == []


@pytest.mark.parametrize("tied", [False, True])
def test_lora_trains_adapters_norms_and_marker_rows_only(make, tied):
    video_llm = make(lora=LORA, language_model={"tie_word_embeddings": tied}).train()
    names = [name for name, value in video_llm.language_model.named_parameters() if value.requires_grad]
    kinds = ("lora_", "norm.modules_to_save", "trainable_tokens_delta")
    assert all(any(kind in name for kind in kinds) for name in names)
    assert all(any(kind in name for name in names) for kind in kinds)
    rows = video_llm.text_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKEN_NAMES))
    deltas = [value for name, value in video_llm.named_parameters() if "trainable_tokens_delta" in name]
    assert {len(delta) for delta in deltas} == {len(rows)}
    assert len(deltas) == (1 if tied else 2)


@pytest.mark.parametrize("train_embeddings", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_merging_adapters_changes_no_loss(make, train_embeddings, tied):
    lora = LoRAConfig(rank=2, alpha=4, dropout=0.0, train_embeddings=train_embeddings)
    video_llm = make(lora=lora, language_model={"tie_word_embeddings": tied})
    for parameter in video_llm.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    before = losses(video_llm, [READ, GENERATE], features(2))
    video_llm.merge_lora()
    after = losses(video_llm, [READ, GENERATE], features(2))
    torch.testing.assert_close(after.text_loss, before.text_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.head_loss, before.head_loss, atol=1e-5, rtol=1e-5)
    assert video_llm.config.lora is None
    assert all(value.requires_grad for value in video_llm.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_layers_that_are_trained_in_full_are_in_memory_once(make, tied):
    lora = LoRAConfig(rank=2, dropout=0.0, train_norms=True, train_embeddings=True)
    plain, adapted = (make(lora=each, language_model={"tie_word_embeddings": tied}) for each in (None, lora))
    adapters = sum(value.numel() for name, value in adapted.named_parameters() if ".lora_" in name)
    numbers = [sum(value.numel() for value in model.parameters()) for model in (plain, adapted)]
    assert numbers[1] == numbers[0] + adapters
    full = [name for name, value in adapted.named_parameters() if value.requires_grad and "modules_to_save" in name]
    assert sum("embed_tokens" in name or "lm_head" in name for name in full) == (1 if tied else 2)
    assert not [name for name, _ in adapted.named_parameters() if ".original_module." in name]


@pytest.mark.parametrize("tied", [False, True])
def test_a_stored_model_with_copies_of_trained_layers_is_read_as_it_was_trained(make, tmp_path, tied):
    """An earlier version stored, beside a layer that was trained in full, the layer as it was before."""
    lora = LoRAConfig(rank=2, dropout=0.0, train_embeddings=True)
    video_llm = make(lora=lora, language_model={"tie_word_embeddings": tied})
    for parameter in video_llm.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_component(video_llm, tmp_path / "video_llm")
    file = tmp_path / "video_llm" / "model.safetensors"
    stored = load_file(file)
    trained = [name for name in stored if ".modules_to_save.default." in name]
    assert trained
    assert not [name for name in stored if ".original_module." in name]
    copies = {n.replace(".modules_to_save.default.", ".original_module."): torch.randn_like(stored[n]) for n in trained}
    save_file({**copies, **stored}, file)
    loaded = load_component(tmp_path / "video_llm", VideoLLM).eval()
    first, second = (losses(model, [READ, GENERATE], features(2)) for model in (video_llm.eval(), loaded))
    assert torch.equal(first.text_loss, second.text_loss)


def test_a_text_that_contains_special_tokens_stays_text(make, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()]
    words = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    video_llm = make(text_tokenizer=str(tmp_path))
    text = "</s> <vid> <s>"
    ids = video_llm.sequences([[Text(text, learn=True)]]).ids_BL[0].tolist()
    assert len(ids) == len(text) + 2
    assert not set(ids[1:-1]) & {video_llm.special.begin, video_llm.special.end, *video_llm.special.clip_markers}


def test_a_pretrained_model_is_loaded_and_new_rows_are_the_mean_of_the_others(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "red": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    original = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=4, **TINY))
    original.save_pretrained(tmp_path)
    video_llm = VideoLLM(VideoLLMConfig(language_model=str(tmp_path), num_queries=Q, feature_dim=C), MSEHead)
    old = original.get_input_embeddings().weight
    new = video_llm.causal_lm.get_input_embeddings().weight
    assert new.shape[0] == 4 + len(SPECIAL_TOKEN_NAMES)
    assert torch.equal(new[:4], old)
    torch.testing.assert_close(new[4:], old.mean(dim=0).expand(len(SPECIAL_TOKEN_NAMES), -1))
    output = original.lm_head.weight
    torch.testing.assert_close(video_llm.causal_lm.lm_head.weight[4:], output.mean(dim=0).expand(6, -1))


def test_freezing_the_language_model_leaves_projector_queries_and_head(make):
    trainable = {n.split(".")[0] for n, p in make(freeze_language_model=True).named_parameters() if p.requires_grad}
    assert trainable == {"input_projector", "queries", "head"}


def test_gradient_checkpointing_changes_no_gradient(make):
    gradients = []
    for checkpointing in (False, True):
        video_llm = make(gradient_checkpointing=checkpointing).train()
        output = losses(video_llm, [READ, GENERATE], features(2))
        (output.text_loss + output.head_loss).backward()
        gradients.append(video_llm.queries.weight_QD.grad)
    torch.testing.assert_close(*gradients)


def test_bfloat16_autocast_keeps_losses_in_float32(make):
    video_llm = make()
    with torch.autocast("cpu", torch.bfloat16):
        output = losses(video_llm, [READ, GENERATE, STORY], features(5))
    assert output.text_loss.dtype == output.head_loss.dtype == torch.float32
    exact = losses(video_llm, [READ, GENERATE, STORY], features(5))
    torch.testing.assert_close(output.text_loss, exact.text_loss, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("shape", [(1, Q, C), (2, Q + 1, C), (2, Q, C + 1)])
def test_features_of_another_shape_are_refused(make, shape):
    with pytest.raises(UserError, match=f"{shape[0]}, {shape[1]}, {shape[2]}.*2, {Q}, {C}"):
        losses(make(), [READ, GENERATE], torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"language_model_config": None}, "language_model=None and language_model_config=None"),
        ({"text_tokenizer": None}, "text_tokenizer=None"),
        ({"max_length": -5}, r"llm\.max_length is -5"),
        ({"text_tokenizer": "no/such/folder"}, "no/such/folder"),
        ({"language_model_config": {"model_type": "llamma"}}, "'llamma'"),
        ({"language_model_config": {"model_type": "clip"}}, "'clip'"),
        ({"language_model_config": {"model_type": "llama", "vocab_size": 9}}, "vocab_size=9"),
        (
            {"language_model_config": {"model_type": "llama", **TINY, "hidden_sise": 9}},
            r"'hidden_sise' is no setting of 'llama'\. Did you mean 'hidden_size'\?",
        ),
        ({"language_model_config": {"model_type": "llama", **TINY, "num_attention_heads": 0}}, "gives no causal"),
        ({"language_model_config": {"model_type": "llama", **TINY, "intermediate_size": -8}}, "gives no causal"),
        (
            {"language_model_config": {"model_type": "gemma2", **TINY}, "attention": "eager"},
            "softcapping=30",
        ),
        ({"lora": LoRAConfig(target_modules=["qq"])}, "'qq'"),
    ],
)
def test_configs_that_do_not_fit_are_named(make, changes, named):
    with pytest.raises(UserError, match=named) as caught:
        make(**changes)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_language_model_folder_that_is_missing_is_named(text_tokenizer):
    config = VideoLLMConfig(language_model="no/such/model", text_tokenizer=text_tokenizer, num_queries=Q, feature_dim=C)
    with pytest.raises(UserError, match="no/such/model"):
        VideoLLM(config, MSEHead)


def test_a_model_without_the_sizes_of_its_features_is_refused(make):
    with pytest.raises(UserError, match="num_queries=None"):
        make(num_queries=None)


def test_sizes_follow_from_the_tokenizer_and_a_stated_size_is_checked():
    assert VideoLLMConfig().for_tokenizer(7, 9).feature_shape == (7, 9)
    assert VideoLLMConfig(num_queries=7, feature_dim=9).for_tokenizer(7, 9).feature_shape == (7, 9)
    with pytest.raises(UserError, match=r"llm.num_queries is 8 .* gives 7 tokens of width 9"):
        VideoLLMConfig(num_queries=8).for_tokenizer(7, 9)


def test_a_folder_of_an_earlier_version_gives_the_same_head(make, tmp_path):
    save_component(make(head=partial(GMMHead, num_components=3)), tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    head = stored["config"].pop("head")
    stored["config"] |= {"head_class": head["class_path"], "head_init_args": head["init_args"]}
    file.write_text(json.dumps(stored))
    assert load_component(tmp_path, VideoLLM).head.num_components == 3


def test_generating_needs_a_clip_to_generate(make):
    with pytest.raises(UserError, match=r"ends with .*Text"):
        make().generate_features([WORDS])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"head": {"class_path": "no_such_plugin.Head"}}, r"'no_such_plugin\.Head'"), ({"num_querys": 3}, "'num_querys'")],
)
def test_stored_configs_that_do_not_fit_are_named(make, tmp_path, change, named):
    save_component(make(), tmp_path / "video_llm")
    file = tmp_path / "video_llm" / "config.json"
    stored = json.loads(file.read_text())
    stored["config"] |= change
    file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=named):
        load_component(tmp_path / "video_llm", VideoLLM)
