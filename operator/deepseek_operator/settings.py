"""What differs between installations of the operator, with defaults that work everywhere."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    operator_namespace: str = "deepseek-system"  # may reach the metrics port of isolated pods
    monitoring_label: str = "training.dstj.io/monitoring"  # namespaces with this label set to "true" may, too
    dns_namespace: str = "kube-system"  # where the cluster's DNS pods run
    progress_interval_s: float = 15.0  # between two looks at a job with pods, and two writes of its progress
    resync_s: float = 300.0  # between two looks at a job that waits for events
    warnings_after_s: float = 10.0  # age of a worker job from which on its Warning events are read
    refused_retry_s: float = 30.0  # before an object that the API server refused is tried again
    namesake_retry_s: float = 2.0  # the same, where it belongs to a job of the same name that was deleted just now
