"""The command line, also a kubectl plugin."""
