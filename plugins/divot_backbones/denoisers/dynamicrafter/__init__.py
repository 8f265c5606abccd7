"""DynamiCrafter's video U-Net, the denoiser of the paper's de-tokenizer (Divot section 3.1.3).

`model` holds the U-Net, `layers` one step of it, `transformers` and `attention` its spatial and temporal transformers.
"""
