"""What a run will take, computed before it starts and without torch: memory, FLOPs, and how to do with less.

The shape of a model (`dimensions`) and the job's settings go in.  Out come the memory of a rank (`estimate`), the FLOPs
of a token and the share of a GPU's peak (`perf`), and the ladder of ever lighter settings that a run climbs when memory
runs out (`ladder`).  `dstj plan`, the check before training and the run itself use the same numbers.
"""
