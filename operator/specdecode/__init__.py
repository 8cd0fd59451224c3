"""specdecode: a Kubernetes operator that runs speculative decoding on vLLM for you."""

import os

__version__ = "0.1.0"

# The model's matrices are small: a second thread of the linear algebra only spins. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
