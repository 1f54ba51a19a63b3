"""`python -m lswap_core`."""

import sys

from lswap_core.cli.main import main

sys.exit(main())
