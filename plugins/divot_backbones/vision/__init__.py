"""Vision encoders: CLIP, and the other vision models of transformers."""
