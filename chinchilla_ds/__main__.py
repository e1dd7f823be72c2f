"""`python -m chinchilla_ds`: the `chinchilla-ds` command, as launchers that start modules call it."""

import sys

from chinchilla_ds.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
