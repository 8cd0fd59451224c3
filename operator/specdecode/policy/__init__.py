"""One observation in, one decision out: the gates."""
