"""The program of its own, and what it imports, is nothing to collect."""

collect_ignore = ["genuine_files.py", "mutations.py", "mutated_headers.py", "mutated_folders.py"]
