"""`python -m lswap_eval`."""

import sys

from lswap_eval.cli import main

sys.exit(main())
