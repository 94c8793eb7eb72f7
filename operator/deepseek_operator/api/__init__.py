"""The vocabulary of the API that all kinds share.

Names of the group and its kinds, conditions and times of a status, network rules, and the way from a pydantic model to
the schema of a CRD.  The spec and the status of one kind stand in the room of that kind.  Nothing here reads a cluster.
"""
