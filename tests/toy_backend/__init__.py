"""An example of an external backend: one matrix product with a JSON table of numbers, in NumPy."""
