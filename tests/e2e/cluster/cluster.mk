# A real two-node Kubernetes on this machine, without Docker; needs root and Go.  See tests/e2e/cluster/cluster.py --help
.PHONY: cluster-build cluster-up cluster-down cluster-status cluster-demo
CLUSTER := $(or $(PYTHON),python3) tests/e2e/cluster/cluster.py

cluster-build: ## build what the cluster, its tests and the chart's need, both images too; start nothing
	@$(or $(PYTHON),python3) tests/helm/tools.py
	$(CLUSTER) build
	$(CLUSTER) image localhost/deepseek-operator:e2e operator/Dockerfile .
	$(CLUSTER) image localhost/deepseek-trainer:e2e trainer_image/Dockerfile .

cluster-up: ## start the real Kubernetes (first time: 6 to 10 minutes of build)
	$(CLUSTER) up

cluster-down: ## switch it off; its state and its programs stay
	$(CLUSTER) down

cluster-status: ## one line for each of its machines
	$(CLUSTER) status

cluster-demo: setup ## the main job in real pods: cluster, images, helm install, kubectl apply, result
	@$(BIN)/python examples/cluster_demo.py
