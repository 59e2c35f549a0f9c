"""The scripts of profiling/ import each other by name, as Python finds them when one is run."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "profiling"))
