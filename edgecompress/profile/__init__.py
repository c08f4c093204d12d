"""How fast a bundle is on this machine, and what this machine can tell apart."""
