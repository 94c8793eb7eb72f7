"""What a run reports about itself while it trains.

The loop hands each step, evaluation and checkpoint to the `Reporter` of rank 0.  That writes it in every form that
somebody reads: an event and a log line, TensorBoard, /progress for the operator, /metrics for Prometheus.  Every rank
measures itself (`meter`) and records a profile on demand (`profiler`).  Numbers and names leave the trainer; data never
do.
"""
