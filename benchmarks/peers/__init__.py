"""What fastformer is measured beside: the same work in other frameworks.

Each module imports its framework, so it is imported only in that framework's own process.
"""

import os

# JAX and XLA read these.
os.environ["JAX_PLATFORMS"] = "cpu"
if "OMP_NUM_THREADS" in os.environ:
    os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"]
