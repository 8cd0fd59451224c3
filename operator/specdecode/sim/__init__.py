"""A simulated vLLM server and the clients that load it."""
