"""The programs of their own, and what they import, are nothing to collect."""

collect_ignore = [
    "amplifiers.py",
    "executions.py",
    "folder_lies.py",
    "framed.py",
    "genuine_checkpoints.py",
    "genuine_files.py",
    "gguf_lies.py",
    "gguf_text.py",
    "guided.py",
    "make_corpus.py",
    "message_mutations.py",
    "mutated_checkpoints.py",
    "mutated_headers.py",
    "mutations.py",
    "mutator.py",
    "plain_decoders.py",
    "readers.py",
    "replayed.py",
    "safetensors_text.py",
    "text_mutations.py",
]
