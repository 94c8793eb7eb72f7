"""How good a model is, in numbers: the loss over held-out rows, and scores of answers and of choices.

`evaluate` runs a `Loss` over the rows, each on one rank, and adds up over the ranks.  The other modules compare what a
model said or chose with what is right; they are pure, and know neither model nor task.
"""
