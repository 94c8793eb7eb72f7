"""One rank's run from start to end: prepare, resume, assess, train, assess, export.

Here the other rooms meet.  Each node prepares model and data first (`preparing`).  A `Rank` knows the job's config and
how far it has climbed its ladder of lighter settings.  `run` finds the checkpoint (`resume`), checks the memory
(`preflight`), puts the loop together (`assembly`), assesses the model before and after (`assessment`) and exports.
When memory runs out, `climb` starts the next round a rung higher.
"""
