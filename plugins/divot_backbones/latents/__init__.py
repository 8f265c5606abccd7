"""Built-in latents: a block DCT without weights, image VAEs and video VAEs."""
