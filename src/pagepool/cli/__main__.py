# SPDX-License-Identifier: MIT
"""``python -m pagepool.cli``: the command where its script is not on the path."""

import sys

from pagepool.cli.main import main

sys.exit(main())
