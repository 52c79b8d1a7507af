"""``python -m eigendamage_ext``: the command line."""

import sys

from eigendamage_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
