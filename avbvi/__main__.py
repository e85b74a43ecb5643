"""python -m avbvi: the same as the command ``avbvi``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
