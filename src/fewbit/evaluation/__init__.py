"""What quantization cost: perplexity, divergence from the reference, fidelity of outputs, size.

Functions here take tensors and callables and import no front end.
"""
