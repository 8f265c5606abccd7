"""Built-in backbones: vision encoders, denoisers, latents and objectives."""
