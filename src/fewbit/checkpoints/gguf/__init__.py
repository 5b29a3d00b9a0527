"""GGUF files: names, metadata, tokenizer and blocks, written as a stream and read back."""
