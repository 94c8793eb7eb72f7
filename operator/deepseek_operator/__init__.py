"""Kubernetes operator for DeepSeekTrainingJob."""
