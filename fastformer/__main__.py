"""`python -m fastformer`: the same as the command `fastformer`."""

import sys

from fastformer.cli import main

sys.exit(main())
