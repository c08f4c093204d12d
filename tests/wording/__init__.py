"""Every text that a user meets, as stored snapshots: a change of wording shows in review.

``python -m tests.wording`` regenerates them.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported
