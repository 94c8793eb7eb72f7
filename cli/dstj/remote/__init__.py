"""Jobs in a real cluster: the kubeconfig's current context, and one namespace of its API server.

`ask(question)` connects, hands an `ApiServer` to the question and returns its answer.  Every refusal of the server
becomes one line and a way out.  The Kubernetes client is imported only then: that takes a second, and a machine without
a cluster does not need it.
"""
