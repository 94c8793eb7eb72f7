"""A cluster of one machine: the operator's own pass, over processes in place of pods.

`LocalCluster` answers what `reconcile` asks of a cluster.  A worker Job becomes local pods, a pod becomes processes, a
claim becomes a directory, a Secret a directory of key files, and the API server one status.yaml.  Manifests flow down
from `reconcile`, statuses flow back up from the processes.
"""
