"""`python -m qvg_engine` is `qvg-engine`."""

import sys

from qvg_engine.cli.app import main

sys.exit(main())
