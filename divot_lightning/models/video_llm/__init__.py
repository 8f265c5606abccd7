"""The video LLM: sequences, masks, losses and sampling around a causal language model."""
