# A real two-node Kubernetes on this machine, without Docker; needs root and Go.  See tests/e2e/cluster/cluster.py --help
.PHONY: cluster-up cluster-down cluster-status cluster-demo
CLUSTER := $(or $(PYTHON),python3) tests/e2e/cluster/cluster.py

cluster-up: ## start the real Kubernetes (first time: 6 to 10 minutes of build)
	$(CLUSTER) up

cluster-down: ## switch it off; its state and its programs stay
	$(CLUSTER) down

cluster-status: ## one line for each of its machines
	$(CLUSTER) status

cluster-demo: setup ## the main job in real pods: cluster, images, helm install, kubectl apply, result
	@$(BIN)/python examples/cluster_demo.py
