"""Built-in objectives: DDIM diffusion with three kinds of prediction, and rectified flow."""
