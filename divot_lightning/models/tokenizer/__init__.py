"""The video tokenizer and its stages."""
