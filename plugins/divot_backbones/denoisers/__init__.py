"""Built-in denoisers: a small transformer for the toy scale, and video models of `diffusers`."""
