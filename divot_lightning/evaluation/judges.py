"""Judges of open-ended answers: a language model says whether an answer means the same as the right one.

One interface, `Judge`; behind it a local transformers model or an endpoint that speaks the OpenAI chat protocol.
No torch is imported before a local model is asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from divot_lightning.errors import UserError

JUDGE_PROMPT = """Below are a question about a video, its correct answer and the answer that a model gave.
Decide whether the model's answer means the same as the correct one. Synonyms and rewordings are fine.

Question: {question}
Correct answer: {correct}
Model's answer: {answer}

Reply with one word, yes or no."""
"""Our wording. The published numbers come from GPT-3.5 with the prompt of Video-ChatGPT (Maaz et al. 2023), which can
be given as a file; a score says which prompt was used."""

PROMPT_FIELDS = ("question", "correct", "answer")
MAX_ANSWER_CHARACTERS = 2000
"""An answer that runs on is cut here before it is shown to a judge."""


@dataclass(frozen=True)
class OpenAnswer:
    """What a judge sees.

    Attributes:
        question: The question.
        correct: The right answer.
        answer: The model's.
    """

    question: str
    correct: str
    answer: str


class Judge(Protocol):
    """Anything that judges answers."""

    def judge(self, answers: Sequence[OpenAnswer]) -> list[bool | None]:
        """Says of each answer whether it is right; None where the judge's reply was neither yes nor no."""
        ...

    def describe(self) -> dict[str, Any]:
        """Says what decides the verdicts, as JSON values, for the protocol of the score."""
        ...


def check_prompt(prompt: str) -> str:
    """Returns a judge's prompt if it shows the question, the right answer and the model's.

    Raises:
        UserError: A field is missing or unknown.
    """
    try:
        prompt.format(**dict.fromkeys(PROMPT_FIELDS, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"the judge's prompt has a field {error} that is not known; known: {{question}}, {{correct}}, {{answer}}\n"
            "Write literal braces twice: {{ and }}."
        ) from error
    missing = [name for name in PROMPT_FIELDS if f"{{{name}}}" not in prompt]
    if missing:
        raise UserError(
            f"the judge's prompt lacks {{{missing[0]}}}; it must show {{question}}, {{correct}}, {{answer}}"
        )
    return prompt


def fill_prompt(prompt: str, answer: OpenAnswer) -> str:
    """Returns the prompt for one answer, which is cut at `MAX_ANSWER_CHARACTERS`."""
    return prompt.format(question=answer.question, correct=answer.correct, answer=answer.answer[:MAX_ANSWER_CHARACTERS])


def read_verdict(reply: str) -> bool | None:
    """Reads a judge's reply: its first yes or no, also within `{'pred': 'yes', 'score': 5}`.

    >>> read_verdict("{'pred': 'No', 'score': 1}"), read_verdict("Yes."), read_verdict("maybe")
    (False, True, None)
    """
    found = re.search(r"\b(yes|no)\b", reply.lower())
    return None if found is None else found[1] == "yes"


class LocalJudge:
    """A causal language model of transformers, asked greedily.

    Args:
        folder: A transformers model folder with its tokenizer; its chat template is used if it has one.
        prompt: See `JUDGE_PROMPT`.
        device: Where it runs.
        batch_size: Answers at a time.

    Raises:
        UserError: The folder cannot be loaded.
    """

    def __init__(
        self, folder: str | Path, *, prompt: str = JUDGE_PROMPT, device: str = "cpu", batch_size: int = 16
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder, self.prompt, self.batch_size = Path(folder), check_prompt(prompt), batch_size
        try:
            self.model: Any = (
                AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
                .to(device)
                .eval()
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, padding_side="left"
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"the judge {str(folder)!r} cannot be loaded as a transformers model ({type(error).__name__})\n"
                "Give a folder with config.json, model.safetensors and the tokenizer's files."
            ) from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def judge(self, answers: Sequence[OpenAnswer]) -> list[bool | None]:
        """See `Judge`."""
        verdicts: list[bool | None] = []
        for start in range(0, len(answers), self.batch_size):
            prompts = [self._chat(fill_prompt(self.prompt, one)) for one in answers[start : start + self.batch_size]]
            verdicts += [read_verdict(reply) for reply in self._replies(prompts)]
        return verdicts

    def describe(self) -> dict[str, Any]:
        """See `Judge`."""
        from divot_lightning.evaluation.protocol import folder_sha256

        return {"kind": "local", "model": folder_sha256(self.folder, "*.safetensors"), "prompt": self.prompt}

    def _chat(self, prompt: str) -> str:
        if not self.tokenizer.chat_template:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _replies(self, prompts: list[str]) -> list[str]:
        # A chat template writes the special tokens itself.
        special = not self.tokenizer.chat_template
        words = self.tokenizer(prompts, padding=True, add_special_tokens=special, return_tensors="pt")
        words = {name: words[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id
        ids = self.model.generate(**words, max_new_tokens=16, do_sample=False, pad_token_id=pad)
        return self.tokenizer.batch_decode(ids[:, words["input_ids"].shape[1] :], skip_special_tokens=True)
