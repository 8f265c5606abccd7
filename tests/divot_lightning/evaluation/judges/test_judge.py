"""A judge never repeats a request whose reply it could read, repeats the others, and describes its prompt."""

import json

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.judges.judge import Judge
from divot_lightning.evaluation.judges.local import LocalReplier
from divot_lightning.evaluation.judges.prompts import (
    MAX_ANSWER_CHARACTERS,
    PROMPTS,
    JudgePrompt,
    OpenAnswer,
    load_prompt,
)
from divot_lightning.evaluation.judges.replies import Verdict, read_verdict

SAME, OTHER = OpenAnswer("what ?", "a dog", "dog"), OpenAnswer("what ?", "a dog", "cat")


class Scripted:
    """Reply by the last message, from a list for each; the last entry of a list stays."""

    def __init__(self, replies, repeatable=False):
        self.replies, self.received, self.repeatable = replies, [], repeatable

    def describe(self):
        return {"kind": "scripted"}

    def check(self, chat):
        pass

    def ask(self, chats, keep):
        for chat in chats:
            self.received.append(chat)
            reply = next(reply for word, reply in self.replies.items() if f"answer: {word}" in chat[-1][1])
            keep(chat, reply.pop(0) if len(reply) > 1 else reply[0])


def test_what_was_read_is_never_asked_again_and_what_was_not_is(tmp_path):
    first = Scripted({"dog": ["yes"], "cat": ["hm", "hm"]})
    found = Judge(PROMPTS["yes_no"], first, tmp_path, attempts=2).judge([SAME, OTHER, SAME])
    assert found == [(Verdict(True), "yes"), (None, "hm"), (Verdict(True), "yes")]
    assert len(first.received) == 3
    again = Scripted({"dog": ["no"], "cat": [None, "no"]})
    found = Judge(PROMPTS["yes_no"], again, tmp_path, attempts=2).judge([SAME, OTHER])
    assert found == [(Verdict(True), "yes"), (Verdict(False), "no")]
    assert len(again.received) == 2


def test_a_model_that_always_replies_the_same_is_asked_once(tmp_path):
    replier = Scripted({"dog": ["hm"]}, repeatable=True)
    Judge(PROMPTS["yes_no"], replier, tmp_path, attempts=5).judge([SAME])
    assert len(replier.received) == 1


def test_replies_are_kept_with_the_judge_that_gave_them(tmp_path):
    Judge(PROMPTS["yes_no"], Scripted({"dog": ["yes"]}), tmp_path).judge([SAME])
    other = Scripted({"dog": ["no"]})
    prompt = JudgePrompt("{question} {correct} answer: {answer}")
    assert Judge(prompt, other, tmp_path).judge([SAME])[0][0] == Verdict(False)
    kept = {
        json.loads((folder / "judge.json").read_text())["prompt"]["user"]: (folder / "replies.jsonl").read_text()
        for folder in (tmp_path / "judges").iterdir()
    }
    assert {user: json.loads(line)["reply"] for user, line in kept.items()} == {
        PROMPTS["yes_no"].user: "yes",
        prompt.user: "no",
    }


def test_a_reply_that_a_kill_cut_off_is_asked_for_again(tmp_path):
    Judge(PROMPTS["yes_no"], Scripted({"dog": ["yes"]}), tmp_path).judge([SAME])
    (file,) = (tmp_path / "judges").glob("*/replies.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    again = Scripted({"dog": ["no"]})
    judge = Judge(PROMPTS["yes_no"], again, tmp_path)
    assert judge.judge([SAME])[0][0] == Verdict(False)
    assert [json.loads(line)["reply"] for line in file.read_text().splitlines()] == ["no"]


def test_a_reply_without_the_score_that_was_asked_for_is_no_verdict(tmp_path):
    replier = Scripted({"": ["{'pred': 'yes'}", "{'pred': 'yes', 'score': 9}", "{'pred': 'yes', 'score': 3}"]})
    prompt = JudgePrompt("{question} {correct} answer: {answer}", scored=True)
    assert Judge(prompt, replier, tmp_path, attempts=2).judge([SAME])[0][0] is None
    assert Judge(prompt, replier, tmp_path).judge([SAME])[0][0] == Verdict(True, 3.0)


def test_a_local_model_judges_by_its_own_words(tmp_path):
    """Its logits are set so that it says yes after any prompt: what it is asked and how it is read is what counts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from divot_datamodules.toy.text_tokenizer import word_level_tokenizer

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
    judge = Judge(PROMPTS["yes_no"], LocalReplier(tmp_path, batch_size=2, max_tokens=3), tmp_path / "out")
    judge.check()
    found = judge.judge([SAME, OTHER, OpenAnswer("a much longer question than that ?", "x", "y")])
    assert found == [(Verdict(True), "yes yes yes")] * 3
    assert len(judge.describe()["model"]) == 64
    drawn = LocalReplier(tmp_path, temperature=1.0, max_tokens=2)
    assert not drawn.repeatable
    kept = []
    drawn.ask([(("system", "dog"), ("user", "cat"))], lambda chat, reply: kept.append(reply))
    assert len(kept[0].split()) <= 2


def test_a_system_message_goes_before_the_user_s_where_a_template_knows_none(tmp_path):
    from divot_datamodules.toy.text_tokenizer import word_level_tokenizer

    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    replier = LocalReplier(tmp_path)
    replier._tokenizer = word_level_tokenizer(["yes no"])
    replier._tokenizer.chat_template = template
    assert replier._text((("system", "be fair"), ("user", "dog ?"))) == "<user>be fair\n\ndog ?"
    replier._tokenizer.chat_template = template.replace("raise_exception('no system')", "'S:'")
    assert replier._text((("system", "be fair"), ("user", "dog ?"))) == "S:<system>be fair<user>dog ?"


def test_a_folder_without_a_judge_is_named(tmp_path):
    with pytest.raises(UserError, match=f"judge '{tmp_path}'"):
        Judge(PROMPTS["yes_no"], LocalReplier(tmp_path), tmp_path / "out").check()


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes", True),
        ("no.", False),
        ("{'pred': 'yes', 'score': 4}", True),
        ('{"pred": "No", "score": 0}', False),
        ("not sure", None),
        ("", None),
        ("I have no way to see the video, but going by the words: {'pred': 'yes', 'score': 5}", True),
        ("No doubt: yes", True),
        ("<think> is it no? yes? no ... </think>\nyes", True),
        ("so it is no, or yes?\n</think>\n\nNo", False),
        ("<think> yes, but I ran out of", None),
        ("Yes, there is no difference in meaning.", True),
        ("No, although yes would be kind", False),
        ("The answer is **no** because a cat is not a dog", False),
        ("There is no way to tell", None),
        ("**Yes**", True),
        ("example: {'pred': 'no'}, mine: {'pred': 'yes', 'score': 2}", True),
        ("The north is yesterday", None),
    ],
)
def test_verdicts_are_read(reply, verdict):
    found = read_verdict(reply)
    assert (None if found is None else found.right) is verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("{'pred': 'yes', 'score': 4.8}", 4.8),
        ('{"pred": "no", "score": "3"}', 3.0),
        ("yes, score: 4/5", 4.0),
        ("{'pred': 'yes'}", None),
        ("{'pred': 'yes', 'score': 48}", None),
        ("{'pred': 'yes', 'score': -1}", None),
    ],
)
def test_scores_are_read(reply, score):
    found = read_verdict(reply)
    assert found is not None
    assert found.score == score


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("p.txt", "{question} {correct}", "{answer}"),
        ("p.txt", "{question} {rightt} {answer}", "{correct}"),
        ("p.yaml", "system: x", "must hold the text `user`"),
        ("p.json", '{"user": ["a"]}', "must hold the text `user`"),
        ("p.json", '{"user": "{question} {correct} {answer}", "temperature": 0}', "nothing else"),
        ("p.yaml", "user: [", "cannot be read"),
    ],
)
def test_prompts_that_do_not_show_everything_are_refused(tmp_path, name, text, shown):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=shown):
        load_prompt("yes_no", str(tmp_path / name))


def test_a_prompt_file_may_hold_braces_of_its_own_and_a_system_message(tmp_path):
    """The published prompt ends in an example of a dictionary."""
    user = "Q: {question} C: {correct} A: {answer}\nlike {'pred': 'yes', 'score': 4.8}."
    (tmp_path / "p.json").write_text(json.dumps({"system": "You grade {strictly}.", "user": user}))
    prompt = load_prompt("yes_no", str(tmp_path / "p.json"))
    assert prompt.scored
    assert prompt.fill(OpenAnswer("q {correct}", "c", "{x}")) == (
        ("system", "You grade {strictly}."),
        ("user", "Q: q {correct} C: c A: {x}\nlike {'pred': 'yes', 'score': 4.8}."),
    )
    (tmp_path / "p.txt").write_text(user.replace("{'", "{{'").replace("8}", "8}}"))
    assert load_prompt("yes_no", str(tmp_path / "p.txt")).user == user  # written for Python's format
    indexed = "{question} {correct} {answer} {answer[x]}"
    (tmp_path / "p.txt").write_text(indexed)
    assert load_prompt("yes_no", str(tmp_path / "p.txt")).user == indexed
    assert not load_prompt("yes_no", None).scored
    as_published = load_prompt("video_chatgpt", str(tmp_path / "p.json"))
    assert (as_published.user, as_published.scored, as_published.whole_scores) == (user, True, True)
    assert not prompt.whole_scores


def test_answers_that_run_on_are_cut():
    long = OpenAnswer("q", "c", "x" * 10 * MAX_ANSWER_CHARACTERS)
    prompt = PROMPTS["yes_no"]
    assert len(prompt.fill(long)[0][1]) < MAX_ANSWER_CHARACTERS + len(prompt.user)
