"""On-disk layouts, one a file; `fewbit.interfaces.CHECKPOINTS` lists them."""
