"""What tests of several files import is nothing to collect."""

collect_ignore_glob = ["*.py"]
