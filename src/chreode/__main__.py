"""``python -m chreode`` is the command line."""

import sys

from .commands.app import main

sys.exit(main())
