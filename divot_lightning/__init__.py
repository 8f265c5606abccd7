"""Divot-lightning: modular Lightning training suite for the Divot video tokenizer and video LLM."""

__version__ = "0.1.0"
