"""The machinery that serves objects of any kind; it knows a kind only as a `Kind`.

Watches (`owner_watch`, `child_watch`) turn every event into the key of an owner.  The `workqueue` runs one pass per key
at a time.  A pass (`reconcile`) fetches the owner, looks, lets the kind decide, acts by server-side apply and writes
the status last.  No state is kept that a restart would lose: memory (`cluster`, `memory`) only saves requests.
"""
