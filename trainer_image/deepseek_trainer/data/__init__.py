"""From the files on a claim to the batches of a step, in an order that any number of ranks can reproduce.

Preparation reads `sources` as records, has the task's `Preparer` make rows of one size, and writes them as `shards` in
a directory that is named after all that shaped them.  Training opens that directory as a `dataset`.  A
`Cursor` says which rows a step takes: a pure function of seed and position (`order`, `permutation`), so that a run
resumes anywhere at no cost.  The `loader` makes batches of them.  Nothing here knows what a row means: the task does.
"""
