"""JAX: any function of parameters and inputs, rewritten as a jaxpr; nothing is patched, no model class is known."""
