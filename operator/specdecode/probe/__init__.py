"""Measurements that are made on purpose, with requests of our own."""
