"""The programs of their own, and what they import, are nothing to collect."""

collect_ignore = [
    "folder_lies.py",
    "genuine_checkpoints.py",
    "genuine_files.py",
    "gguf_lies.py",
    "gguf_text.py",
    "mutated_checkpoints.py",
    "mutated_headers.py",
    "mutations.py",
    "plain_decoders.py",
    "safetensors_text.py",
]
