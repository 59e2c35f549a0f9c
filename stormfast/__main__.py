"""python -m stormfast: the same as the stormfast command."""

import sys

from stormfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
