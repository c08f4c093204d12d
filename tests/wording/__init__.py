"""Every text that a user meets, as stored snapshots: a change of wording shows in review.

``python -m tests.wording`` regenerates them.
"""
