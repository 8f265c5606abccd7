"""A judge that is a causal language model of transformers on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.judges.judge import Keep
from divot_lightning.evaluation.judges.prompts import Chat
from divot_lightning.evaluation.protocol import folder_sha256

SEED = 0
"""Seed of the sampling if the temperature is not 0; each batch adds one."""


class LocalReplier:
    """A causal language model as a judge. It is loaded for the first prompt, after the measured model has finished.

    Args:
        folder: A transformers model folder with its tokenizer; its chat template is used if it has one.
        temperature: 0 or None is greedy.
        top_p: Tokens are sampled from the most likely ones that together have this probability; None for all.
        max_tokens: Most tokens of a reply.
        device: Where it runs.
        batch_size: Answers at a time.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        max_tokens: int = 64,
        device: str = "cpu",
        batch_size: int = 16,
    ) -> None:
        self.folder, self.device, self.batch_size = Path(folder), device, batch_size
        self.temperature, self.top_p, self.max_tokens = temperature or 0.0, top_p, max_tokens
        self.repeatable = not self.temperature
        self._model: Any = None
        self._tokenizer: Any = None
        self._batches = 0

    def check(self, chat: Chat) -> None:
        """See `Replier`: reads the configuration and the tokenizer, not the weights."""
        from transformers import AutoConfig

        try:
            AutoConfig.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False)
            self._load_tokenizer()
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error
        if not list(self.folder.glob("*.safetensors")):
            raise self._unusable(FileNotFoundError())

    def describe(self) -> dict[str, Any]:
        """See `Replier`."""
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "seed": SEED}
        return {
            "kind": "local",
            "model": folder_sha256(self.folder, "*.safetensors"),
            "decoding": {**(sampled if self.temperature else {"greedy": True}), "max_tokens": self.max_tokens},
        }

    def ask(self, chats: Sequence[Chat], keep: Keep) -> None:
        """See `Replier`."""
        self._load()
        for start in range(0, len(chats), self.batch_size):
            batch = chats[start : start + self.batch_size]
            for chat, reply in zip(batch, self._replies([self._text(chat) for chat in batch]), strict=True):
                keep(chat, reply)

    def _load(self) -> None:
        if self._model is not None:
            return
        from transformers import AutoModelForCausalLM

        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(self.folder), local_files_only=True, trust_remote_code=False
            )
            self._load_tokenizer()
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error
        self._model = model.to(self.device).eval()

    def _load_tokenizer(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(
            str(self.folder), local_files_only=True, trust_remote_code=False, padding_side="left"
        )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"the judge {str(self.folder)!r} cannot be loaded as a transformers model ({type(error).__name__})\n"
            "Give a folder with config.json, model.safetensors and the tokenizer's files."
        )

    def _text(self, chat: Chat) -> str:
        if not self._tokenizer.chat_template:
            return "\n\n".join(text for _, text in chat)
        from jinja2 import TemplateError

        try:
            return self._templated(chat)
        except TemplateError:  # Gemma and others have no system message: it goes before the user's
            return self._templated((("user", "\n\n".join(text for _, text in chat)),))

    def _templated(self, chat: Chat) -> str:
        messages = [{"role": role, "content": text} for role, text in chat]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _replies(self, prompts: list[str]) -> list[str]:
        import torch

        # A chat template writes the special tokens itself.
        special = not self._tokenizer.chat_template
        words = self._tokenizer(prompts, padding=True, add_special_tokens=special, return_tensors="pt")
        words = {name: words[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": 0}
        self._batches += 1
        with torch.random.fork_rng():
            torch.manual_seed(SEED + self._batches)  # so that another attempt samples another reply
            pad = self._tokenizer.pad_token_id
            ids = self._model.generate(**words, max_new_tokens=self.max_tokens, pad_token_id=pad, **sampling)
        return self._tokenizer.batch_decode(ids[:, words["input_ids"].shape[1] :], skip_special_tokens=True)
