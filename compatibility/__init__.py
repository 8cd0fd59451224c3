"""vLLM releases, checked against their own code: `make compatibility`."""
