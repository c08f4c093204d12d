"""A student from a teacher: what it starts as, what it learns, and the record of how it was made."""
