"""Training with rounding in the loop: quantizers in a model, gradients through them, and what comes out at the end."""
