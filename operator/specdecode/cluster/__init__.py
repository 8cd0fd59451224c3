"""Kubernetes and scrape I/O."""
