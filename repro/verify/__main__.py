"""`python -m repro.verify` is `repro verify`."""

import sys

from repro.verify.cli import main

sys.exit(main(sys.argv[1:]))
