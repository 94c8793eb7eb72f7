"""The model as the ranks train it: loaded, fitted with adapters or frozen, spread, and with a loss.

A model comes from the prepared base or from a seed (`loading`).  The job's method decides which weights change
(`method`, `adapters`, `nf4`); dropout, recompute, precision and compiling change how it computes.  The task wraps it in
a `Loss`, one module that goes from a batch to a sum of losses, and `parallel` spreads that over the ranks.
"""
