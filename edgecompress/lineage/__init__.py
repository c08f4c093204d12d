"""A student's lineage: collected, checked against the user's policy, and written in standard formats.

It works offline, except ``hub``, and infers nothing: what no file and no user states stays unknown.
"""
