"""What vLLM accepts and exposes, by version: arguments, metrics, compatibility."""
