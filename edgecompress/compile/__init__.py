"""A lowered graph to what the target loads. One module a backend."""
