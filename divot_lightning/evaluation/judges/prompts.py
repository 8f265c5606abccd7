"""Prompts for judges of open answers: built in or from a file, filled with a question and its answers.

No torch in here.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from divot_lightning.errors import FORMAT_ERRORS, UserError, first_line

PromptName = Literal["yes_no", "video_chatgpt"]
Chat = tuple[tuple[str, str], ...]
"""Messages in order, each a role ("system" or "user") and its text."""

PROMPT_FIELDS = ("question", "correct", "answer")
MAX_ANSWER_CHARACTERS = 2000
"""A longer answer is cut to so many characters before a judge sees it."""


@dataclass(frozen=True)
class OpenAnswer:
    """A question with the right answer and the model's.

    Attributes:
        question: The question.
        correct: The right answer.
        answer: The model's.
    """

    question: str
    correct: str
    answer: str


@dataclass(frozen=True)
class JudgePrompt:
    """The messages for a judge, with the fields {question}, {correct} and {answer}.

    Attributes:
        user: The message of the user.
        system: The system message; empty for none.
        scored: Whether the reply must have a score from 0 to 5 besides yes or no.
        whole_scores: Whether scores are cut to integers before they are averaged, as in Video-ChatGPT's script.
    """

    user: str
    system: str = ""
    scored: bool = False
    whole_scores: bool = False

    def fill(self, answer: OpenAnswer) -> Chat:
        """Return the messages for one answer, which is cut at `MAX_ANSWER_CHARACTERS`."""
        values = {"question": answer.question, "correct": answer.correct, "answer": answer.answer}
        values["answer"] = values["answer"][:MAX_ANSWER_CHARACTERS]
        messages = (("system", self.system), ("user", self.user))
        return tuple((role, _fill(text, values)) for role, text in messages if text)

    def describe(self) -> dict[str, Any]:
        """Return what decides the verdicts, as JSON values."""
        described: dict[str, Any] = {"user": self.user, "answer_cut_at": MAX_ANSWER_CHARACTERS}
        if self.system:
            described["system"] = self.system
        if self.scored:
            described["scores"] = "without their fraction" if self.whole_scores else "as said"
        return described


_YES_NO = """Below are a question about a video, its correct answer and the answer that a model gave.
Decide whether the model's answer means the same as the correct one. Synonyms and rewordings are fine.

Question: {question}
Correct answer: {correct}
Model's answer: {answer}

Reply with one word, yes or no."""

_PROTOCOL_SYSTEM = """You grade the answers that a model gives to questions about videos.
Compare the predicted answer with the correct one and decide whether their meaning agrees:
- what counts is the meaning, not the wording;
- synonyms and paraphrases agree;
- judge the prediction against the correct answer alone."""

_PROTOCOL_USER = """Grade this answer to a question about a video:

Question: {question}
Correct Answer: {correct}
Predicted Answer: {answer}

Give yes or no, and an integer score from 0 to 5, where 5 is the best agreement in meaning.
Reply with nothing but a Python dictionary with the keys 'pred', which is the string 'yes' or 'no', and 'score', which
is an integer, such as {'pred': 'yes', 'score': 5}."""

PROMPTS: dict[PromptName, JudgePrompt] = {
    "yes_no": JudgePrompt(_YES_NO),
    "video_chatgpt": JudgePrompt(_PROTOCOL_USER, _PROTOCOL_SYSTEM, scored=True, whole_scores=True),
}
"""`yes_no` is ours. `video_chatgpt` is the protocol of Video-ChatGPT (Maaz et al. 2023, arXiv:2306.05424), which
VideoLLaMA 2 and lmms-eval took over: a system and a user message, a dictionary in reply, accuracy and mean score. The
words of the messages are ours; the published words can be given as a file."""


def load_prompt(name: PromptName, file: str | None) -> JudgePrompt:
    """Return a built-in prompt, or the one of a file.

    Args:
        name: Of the built-in prompt; beside a file, how replies are read and counted.
        file: JSON or YAML with `user` and perhaps `system`, by its suffix; any other file is the user's message.

    Raises:
        UserError: There is no such file, it holds no prompt, or a field is missing.
    """
    if file is None:
        return PROMPTS[name]
    path = Path(file)
    if not path.is_file():
        raise UserError(f"judge.prompt_file {file} is not there")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"judge.prompt_file {file} is no UTF-8 text: {error}") from error
    messages = _read_messages(path, text) if path.suffix in (".json", ".yaml", ".yml") else {"user": text}
    messages = {role: unescape(message) for role, message in messages.items()}
    scored = PROMPTS[name].scored or "score" in " ".join(messages.values()).lower()
    user, system = messages["user"], messages.get("system", "")
    return check_prompt(replace(PROMPTS[name], user=user, system=system, scored=scored))


def _read_messages(path: Path, text: str) -> dict[str, str]:
    try:
        found = yaml.safe_load(text)  # JSON is YAML too
    except yaml.YAMLError as error:
        raise UserError(f"judge.prompt_file {path} cannot be read: {first_line(error)}") from error
    fine = isinstance(found, dict) and {"user"} <= set(found) <= {"user", "system"}
    if not fine or not all(isinstance(message, str) for message in found.values()):
        raise UserError(f"judge.prompt_file {path} must hold the text `user` and perhaps `system`, and nothing else")
    return found


def check_prompt(prompt: JudgePrompt) -> JudgePrompt:
    """Return a judge's prompt if it shows the question, the right answer and the model's.

    Raises:
        UserError: A field is missing.
    """
    missing = [name for name in PROMPT_FIELDS if f"{{{name}}}" not in prompt.system + prompt.user]
    if missing:
        raise UserError(
            f"the judge's prompt lacks {{{missing[0]}}}; it must show {{question}}, {{correct}} and {{answer}}"
        )
    return prompt


def unescape(text: str) -> str:
    """Return a text with doubled braces made single, if all of them are doubled as `str.format` requires.

    Braces that belong to no field are ordinary text, so published prompts can be given as they are. A file that was
    written for `str.format` keeps its meaning.

    >>> unescape("{answer} {{'pred': 'yes'}}"), unescape("{answer} {'pred': {'a': {}}}")
    ("{answer} {'pred': 'yes'}", "{answer} {'pred': {'a': {}}}")
    """
    try:
        return text.format(**{name: f"{{{name}}}" for name in PROMPT_FIELDS})
    except FORMAT_ERRORS:
        return text


def _fill(text: str, values: dict[str, str]) -> str:
    # In one pass, so that "{correct}" within an answer is not replaced by the right answer.
    return re.sub("{(" + "|".join(PROMPT_FIELDS) + ")}", lambda field: values[field[1]], text)
