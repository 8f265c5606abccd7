"""`python -m divot_lightning` is the `divot` command."""

import sys

from divot_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
