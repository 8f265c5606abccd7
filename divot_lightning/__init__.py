"""Divot-lightning: modular Lightning training suite for the Divot video tokenizer and video LLM."""

from divot_lightning.distributed.parent import bind_to_named_parent

__version__ = "0.1.0"

bind_to_named_parent()  # does nothing but in a process that another one of ours started
