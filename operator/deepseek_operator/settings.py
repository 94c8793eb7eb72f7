"""What differs between installations of the operator.  The defaults work everywhere."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    operator_namespace: str = "deepseek-system"  # this namespace may reach the metrics port of isolated pods
    monitoring_label: str = "training.dstj.io/monitoring"  # so may namespaces in which this label is "true"
    dns_namespace: str = "kube-system"  # the DNS pods of the cluster run here
    dns_ports: tuple[int, ...] = (53, 5353)  # and listen on these: 5353 are OpenShift's
    progress_interval_s: float = 15.0  # between two passes over a job with pods, and between two writes of its progress
    resync_s: float = 300.0  # between two passes over a job that waits for events
    first_report_s: float = 60.0  # so long the first report of an attempt waits for kube-controller-manager's
    warnings_after_s: float = 10.0  # a worker job is this old before its Warning events are read
    refused_retry_s: float = 30.0  # before an object that the API server refused is applied again
    namesake_retry_s: float = 2.0  # the same, where the object still belongs to a deleted job of the same name
    backoff_s: float = 10.0  # between an attempt that ended and the next one; each pause is twice the one before
    longest_backoff_s: float = 600.0
    placement_wait_s: float = 300.0  # so long pods hold machines while others of their attempt have none
    longest_placement_wait_s: float = 3600.0
    # What people are told of workers: on a machine without a cluster they are no pods.
    worker: str = "pod"
    lost_fix: str = "; if their machine is gone, use `kubectl delete pod --force`"
    resume_fix: str = "set suspend: false to continue from the last checkpoint"
