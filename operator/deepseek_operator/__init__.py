"""Kubernetes operator for DeepSeekTrainingJob.

Rooms, lowest first; none imports from one above it, and the two on one line know nothing of each other:
api/ and settings, objects/, then controller/ and jobs/.  `__main__` puts a kind (jobs/) and the controller together.
A further kind is a room beside jobs/ of the same shape, with a kind.py that `__main__` hands to the controller.
"""
