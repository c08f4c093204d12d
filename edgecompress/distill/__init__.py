"""Distillation: the student's starting weights, what it learns from a teacher, and the record of the run."""
