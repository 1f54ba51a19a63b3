"""`python -m lswap_eval`."""

import sys

from lswap_eval.cli.main import main

sys.exit(main())
