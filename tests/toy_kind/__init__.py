"""A kind of student that somebody else wrote: two numbers in, one out. Nothing in edgecompress knows of it."""
