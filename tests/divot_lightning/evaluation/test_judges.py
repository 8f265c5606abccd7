"""Judges give verdicts; an endpoint is asked a bounded number of times and never twice for the same."""

import json

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.judge_endpoint import KEY_VARIABLE, JudgeEndpoint
from divot_lightning.evaluation.judges import (
    JUDGE_PROMPT,
    MAX_ANSWER_CHARACTERS,
    LocalJudge,
    OpenAnswer,
    check_prompt,
    fill_prompt,
    read_verdict,
)

SAME, OTHER = OpenAnswer("what ?", "a dog", "dog"), OpenAnswer("what ?", "a dog", "cat")


def test_verdicts_come_in_the_order_of_the_answers(endpoint, tmp_path):
    judge = JudgeEndpoint(endpoint.url, "m", tmp_path)
    assert judge.judge([SAME, OTHER, SAME]) == [True, False, True]
    path, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)


def test_the_same_is_never_asked_twice_in_this_run_or_the_next(endpoint, tmp_path):
    JudgeEndpoint(endpoint.url, "m", tmp_path).judge([SAME, OTHER, SAME])
    assert JudgeEndpoint(endpoint.url, "m", tmp_path).judge([OTHER, SAME]) == [False, True]
    assert len(endpoint.requests) == 2
    JudgeEndpoint(endpoint.url, "another", tmp_path).judge([SAME])
    assert len(endpoint.requests) == 3


def test_no_more_requests_run_at_once_than_allowed(endpoint, tmp_path):
    answers = [OpenAnswer(f"question {number}", "a dog", "dog") for number in range(12)]
    assert all(JudgeEndpoint(endpoint.url, "m", tmp_path, concurrency=3).judge(answers))
    assert endpoint.most_at_once <= 3


def test_busy_endpoints_and_broken_replies_are_tried_again(endpoint, tmp_path):
    endpoint.script = [(429, {"Retry-After": "0"}, "later"), (503, {}, ""), (200, {}, "no json"), (200, {}, "{}")]
    assert JudgeEndpoint(endpoint.url, "m", tmp_path, pause=0.01).judge([SAME]) == [True]
    assert len(endpoint.requests) == 5


def test_an_endpoint_that_stays_busy_is_given_up_and_what_it_said_is_kept(endpoint, tmp_path):
    judge = JudgeEndpoint(endpoint.url, "m", tmp_path, pause=0.01, tries=2, concurrency=1)
    judge.judge([SAME])
    endpoint.script = [(500, {}, "")] * 2
    with pytest.raises(UserError, match=r"no answer in 2 tries \(HTTP 500\)"):
        judge.judge([SAME, OTHER])
    assert judge.judge([SAME, OTHER]) == [True, False]
    assert len(endpoint.requests) == 4


def test_a_refusal_is_told_at_once_and_names_the_variable_of_the_key(endpoint, tmp_path):
    endpoint.script = [(401, {}, "bad key")]
    with pytest.raises(UserError, match=f"HTTP 401 bad key\n.*{KEY_VARIABLE}"):
        JudgeEndpoint(endpoint.url, "m", tmp_path).judge([SAME])
    assert len(endpoint.requests) == 1


def test_the_key_comes_from_the_environment_and_is_written_nowhere(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    judge = JudgeEndpoint(endpoint.url, "m", tmp_path)
    judge.judge([SAME])
    assert endpoint.keys == ["Bearer s3cret"]
    assert "s3cret" not in json.dumps(judge.describe())
    assert all("s3cret" not in path.read_text() for path in tmp_path.iterdir())


def test_the_key_does_not_follow_a_redirection(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    endpoint.script = [(302, {"Location": f"{endpoint.url}/elsewhere"}, "")]
    with pytest.raises(UserError, match="HTTP 302"):
        JudgeEndpoint(endpoint.url, "m", tmp_path).judge([SAME])
    assert len(endpoint.requests) == 1


def test_requests_are_bounded(endpoint, tmp_path):
    with pytest.raises(UserError, match="sent 1 requests"):
        JudgeEndpoint(endpoint.url, "m", tmp_path, max_requests=1, concurrency=1).judge([SAME, OTHER])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("url", "settings", "shown"), [("ftp://x", {}, "ftp://x"), ("http://x", {"concurrency": 0}, "concurrency is 0")]
)
def test_wrong_settings_are_named(url, settings, shown, tmp_path):
    with pytest.raises(UserError, match=shown):
        JudgeEndpoint(url, "m", tmp_path, **settings)


def test_a_local_model_judges_by_its_own_words(tmp_path):
    """Its logits are set so that it says yes after any prompt: what it is asked and how it is read is what counts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from divot_datamodules.text_tokenizer import word_level_tokenizer

    tokenizer = word_level_tokenizer(["yes no dog cat"])
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    word = tokenizer.get_vocab()["yes"]
    with torch.no_grad():
        model.lm_head = torch.nn.Linear(8, len(tokenizer), bias=False)
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[word] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    judge = LocalJudge(tmp_path, batch_size=2)
    assert judge.judge([SAME, OTHER, OpenAnswer("a much longer question than that ?", "x", "y")]) == [True] * 3
    assert len(judge.describe()["model"]) == 64


def test_a_folder_without_a_judge_is_named(tmp_path):
    with pytest.raises(UserError, match=f"judge '{tmp_path}'"):
        LocalJudge(tmp_path)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("Yes", True), ("no.", False), ("{'pred': 'yes', 'score': 4}", True), ("not sure", None), ("", None)],
)
def test_verdicts_are_read(reply, verdict):
    assert read_verdict(reply) is verdict


@pytest.mark.parametrize(
    ("prompt", "shown"), [("{question} {correct}", "{answer}"), ("{question} {rightt}", "rightt"), ("{} {0}", "field")]
)
def test_prompts_that_do_not_show_everything_are_refused(prompt, shown):
    with pytest.raises(UserError, match=shown):
        check_prompt(prompt)


def test_answers_that_run_on_are_cut():
    long = OpenAnswer("q", "c", "x" * 10 * MAX_ANSWER_CHARACTERS)
    assert len(fill_prompt(JUDGE_PROMPT, long)) < MAX_ANSWER_CHARACTERS + len(JUDGE_PROMPT)
