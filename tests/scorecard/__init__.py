"""The scorecard: what fastformer promises, measured; run it with `python -m tests.scorecard`."""

import sys
from pathlib import Path

# The helpers of the tests import each other without a package, as pytest has them.
sys.path.insert(0, str(Path(__file__).parent.parent))
