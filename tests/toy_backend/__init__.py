"""A backend that somebody else wrote: one product from a table of numbers in JSON, by NumPy alone."""
