"""Making a change: phases, the canary's analysis, the patches. Pure."""
