"""`python -m lswap_core`."""

import sys

from lswap_core.cli import main

sys.exit(main())
