"""Lets the command line run as `python -m pyquant`."""

import sys

from pyquant.cli import main

if __name__ == "__main__":
    sys.exit(main())
