"""The de-tokenizer: a video diffusion model, its latents and its noise."""
