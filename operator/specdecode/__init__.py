"""specdecode: a Kubernetes operator that runs speculative decoding on vLLM for you."""

__version__ = "0.1.0"
