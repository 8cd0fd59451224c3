"""Real vLLM on the CPU for the lab: its environment, small models, and a server that starts in seconds."""
