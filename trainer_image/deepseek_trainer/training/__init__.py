"""The training loop, and the learner that takes its steps.

Each turn of the `Loop`, all ranks agree whether to stop or save, add up gradients over their batches, judge their norm
(`guard`) and take the step.  A `Learner` is the model spread over the ranks with its optimizers: by torch
(`torch_learner`) or DeepSpeed (`zero_learner`).  Its state, the counters of the run (`state`) and the cursor of the
data are all that a checkpoint holds, and all that a run needs to go on as if nothing had happened.
"""
