"""Segments: how tasks describe the contents of a sample and what is learned from it.

A sample of any task (caption, generation, question and answer, story) is a list of segments: text, clips that the model
reads, clips that the model generates. The segments alone say what is learned, so no task is a special case.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from divot_lightning.errors import UserError

ClipUse: TypeAlias = Literal["read", "generate"]

Kind: TypeAlias = Literal["video", "image"]

SPECIAL_TOKEN_NAMES = ("<vid>", "</vid>", "<img>", "</img>", "<frame>", "</frame>")
"""Names of the tokens that mark clips, as in the released tokenizer."""

USER_TURN, ANSWER = "{user turn}", "{answer}"
"""Marks of a chat template, as texts with `special`: a user's turn begins, and an answer is due. The text tokenizer
puts its own texts there; see `divot_lightning.parts.sequences.chat_template`."""


@dataclass(unsafe_hash=True)
class Text:
    """A piece of text. Treat it as immutable: it is not frozen only because Lightning rebuilds batches field by field.

    Attributes:
        text: The text, without special tokens.
        learn: Whether its tokens are targets of the next-word loss.
        ends: Whether an end token follows the text, as after an answer in a conversation that continues. The end
            token is a target if the text is.
        special: Whether special tokens in the text count as such. Only a chat template has them: a task sets it for the
            marks `USER_TURN` and `ANSWER`, and never for a text of the data.
    """

    text: str
    learn: bool
    ends: bool = False
    special: bool = False


@dataclass(unsafe_hash=True)
class Clips:
    """Consecutive clips between ``<vid>`` and ``</vid>`` (``<img>`` and ``</img>`` for images); immutable as `Text`.

    Attributes:
        count: Number of clips (2 seconds each), at least 1.
        role: "read": the features are input. "generate": the features are the target of the generation head.
        kind: "video" or "image"; it chooses the opening and closing tokens.
        learn: Whether the opening and closing tokens are targets of the next-word loss. Generation tuning sets it, so
            that the model learns to begin a clip by itself (label details of the released code, video generation
            instruction tuning).
    """

    count: int
    role: ClipUse
    kind: Kind = "video"
    learn: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"Clips(count={self.count}) holds no clip; count must be at least 1.")
        if self.role not in ("read", "generate"):
            raise UserError(f"Clips(role={self.role!r}) is unknown; role is 'read' or 'generate'.")
        if self.kind not in ("video", "image"):
            raise UserError(f"Clips(kind={self.kind!r}) is unknown; kind is 'video' or 'image'.")


Segment: TypeAlias = Text | Clips
