"""The kind DeepSeekTrainingJob, from its spec to its status.

`spec` and `training_job` read it, `profile` is what it picks, and `limits` holds it to that.  `look` sees the world
around it, `decide` plans from the `facts` of both, `manifests` builds the objects of an attempt, and `outcome` writes
what was found into the `status`.  `kind` puts these together.
One attempt is one Indexed Job; a counter is written to the status before the pass that acts on it.
"""
