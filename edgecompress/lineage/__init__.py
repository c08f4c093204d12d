"""Where a student came from: collected, judged by the user's policy alone, and written in the formats that others read.

Nothing here asks the network, and nothing is inferred: what no file and no user says stays unknown. Only ``hub`` sends.
"""
