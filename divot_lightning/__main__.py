"""`python -m divot_lightning` is the `divot` command."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    # `python -m` would look for every module in the current folder first, which may be one that a stranger made.
    del sys.path[0]

from divot_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
