"""Programs that tests start with another interpreter, or as a process of their own; they import what that one has."""

collect_ignore = ["gptqmodel_logits.py", "ik_llama.py"]
