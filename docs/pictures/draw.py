"""Draw the pictures of docs/numerics.md from fewbit's own formats and functions, or print its tables.

Run: python docs/pictures/draw.py [--table]
Needs fewbit and torch. A test holds pictures and tables to what this makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import grids
import levels
import measured
import tables
from canvas import Canvas

#: Name of the file without its ending, and what draws it.
PICTURES: dict[str, Callable[[], Canvas]] = {
    "affine": grids.affine,
    "granularity": grids.granularity,
    "levels": levels.levels,
    "nf4": levels.nf4,
    "scales": measured.scales,
    "clipping": measured.clipping,
    "rounding": grids.rounding,
}


def main() -> None:
    """Write every picture beside this file, or print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the tables and draw nothing")
    if parser.parse_args().table:
        sys.stdout.write("\n".join(make() for make in tables.TABLES.values()))
        return
    for name, draw in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(str(draw()), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
