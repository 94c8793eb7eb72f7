"""What operator and trainer agree on: names, paths, exit codes, the training config.

Imports neither torch nor kopf nor the rest of the trainer, so that both sides can afford it.
"""
