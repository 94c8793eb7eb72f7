"""The full state of a run after a step, as a directory that is whole or invisible.

A state comes in as nested dicts.  It is split into tensors and JSON (`statefile`), divided among the ranks (`dcp`),
written by each of them and committed by rank 0 (`store`, `ledger`), beside the training from a copy (`saver`).
HEAD.json records what was committed.  Readers, `dstj` too, go through `catalog`, which trusts only what authenticates.
"""
