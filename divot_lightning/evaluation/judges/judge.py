"""Judge open-ended answers: a language model decides whether an answer means the same as the right one.

A `Judge` sends its prompt to a `Replier`, a local model or an endpoint. It stores every reply in a folder of its own
and asks again if a reply cannot be read. No torch in here.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from divot_lightning.evaluation.judges.prompts import Chat, JudgePrompt, OpenAnswer
from divot_lightning.evaluation.judges.replies import Verdict, read_verdict
from divot_lightning.io.files import text_sha256, write_atomically
from divot_lightning.io.jsonl import LineFile, read_rows
from divot_lightning.io.output_files import make_folder

JUDGES = "judges"
"""Folder of an evaluation: one folder per judge, with `judge.json` and `replies.jsonl`."""

Keep = Callable[[Chat, str | None], None]
"""Called with each chat and its reply; the reply is None if there is none, such as after a refused request."""


class Replier(Protocol):
    """A language model that replies to a judge's prompts.

    Attributes:
        repeatable: Whether it always gives the same reply, so that asking again is useless.
    """

    repeatable: bool

    def check(self, chat: Chat) -> None:
        """Raise a `UserError` if the model cannot reply; `chat` is an example of a prompt."""
        ...

    def ask(self, chats: Sequence[Chat], keep: Keep) -> None:
        """Send all chats and pass each reply to `keep` as soon as it arrives."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what decides the replies besides the prompt, as JSON values."""
        ...


class Judge:
    """Judge answers with a language model; an answer whose reply could be read is never judged twice.

    Args:
        prompt: The messages.
        replier: The language model.
        folder: Of the evaluation; replies are stored in a folder of this judge there.
        attempts: Times that an answer is judged until the reply can be read.
    """

    def __init__(self, prompt: JudgePrompt, replier: Replier, folder: Path, attempts: int = 3) -> None:
        self.prompt, self.replier = prompt, replier
        self.attempts = 1 if replier.repeatable else attempts
        self.evaluation = folder

    def check(self) -> None:
        """Raise a `UserError` if the judge cannot reply."""
        self.replier.check(self.prompt.fill(OpenAnswer("what is in the video?", "a dog", "a dog")))

    def describe(self) -> dict[str, Any]:
        """Return what decides the verdicts, as JSON values, for the protocol of the score."""
        return {**self.replier.describe(), "prompt": self.prompt.describe(), "attempts": self.attempts}

    def judge(self, answers: Sequence[OpenAnswer]) -> list[tuple[Verdict | None, str | None]]:
        """Judge answers.

        Args:
            answers: The answers; equal ones are judged once.

        Returns:
            For each answer the verdict and the reply that it was read from; no verdict if the reply cannot be read.

        Raises:
            UserError: The model does not reply any more; the replies so far are stored.
        """
        chats = [self.prompt.fill(answer) for answer in answers]
        with closing(Replies(self.evaluation / JUDGES, self.describe())) as replies:
            for _ in range(self.attempts):
                waiting = [chat for chat in dict.fromkeys(chats) if self._read(replies.get(chat)) is None]
                if not waiting:
                    break
                self.replier.ask(waiting, replies.keep)
            found = [replies.get(chat) for chat in chats]
        return [(self._read(reply), reply) for reply in found]

    def _read(self, reply: str | None) -> Verdict | None:
        verdict = None if reply is None else read_verdict(reply)
        # Where the prompt asks for a score, a reply without one counts as unreadable.
        return None if verdict is None or (self.prompt.scored and verdict.score is None) else verdict


class Replies:
    """The stored replies of one judge.

    Args:
        folder: Of all judges of the evaluation.
        description: Of this judge.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        text = json.dumps(description, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        self.folder = folder / text_sha256(text)[:16]
        make_folder(self.folder)
        write_atomically(self.folder / "judge.json", text)
        self._file = LineFile(self.folder / "replies.jsonl")
        path = self.folder / "replies.jsonl"
        self._found = {row["chat"]: row["reply"] for row in read_rows(path)} if path.is_file() else {}

    def get(self, chat: Chat) -> str | None:
        """Return the last reply to a chat."""
        return self._found.get(_digest(chat))

    def keep(self, chat: Chat, reply: str | None) -> None:
        """Store a reply; it is in the file when this returns. None is no reply and changes nothing."""
        if reply is not None:
            self._found[_digest(chat)] = reply
            self._file.append([{"chat": _digest(chat), "reply": reply}])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _digest(chat: Chat) -> str:
    return text_sha256(json.dumps(chat))
