"""The Prometheus metrics of the operator, each with its name, type, labels and meaning.

There are few labels.  No label holds the name of a job, so that 5,000 jobs cost no more than five.
"""

from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

JOBS: Final = Gauge("dstj_jobs", "Training jobs known to this operator.", ["phase"])
TRANSITIONS: Final = Counter(
    "dstj_job_transitions_total", "Changes of a job's phase or its reason, by the reason.", ["reason"]
)
PASSES: Final = Histogram(
    "dstj_reconcile_duration_seconds",
    "Duration of a pass over one job.",
    ["outcome"],  # done, failed
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
QUEUE_DEPTH: Final = Gauge("dstj_queue_depth", "Jobs whose pass is due or under way.")
QUEUE_OLDEST: Final = Gauge("dstj_queue_oldest_seconds", "How long the job that waits longest has been due.")
API_REQUESTS: Final = Counter("dstj_api_requests_total", "Requests to the API server.", ["verb", "code"])
STATUS_WRITES: Final = Counter("dstj_status_writes_total", "Writes of a job's status.")
MISSED_EVENTS: Final = Counter("dstj_missed_events_total", "Changes that a list found and no watch event had reported.")
REVIVED: Final = Counter("dstj_revived_keys_total", "Jobs on which nobody worked any more, found by the minute's look.")
WATCH_RESTARTS: Final = Counter("dstj_watch_restarts_total", "Restarts of the watches after they ended.")
LEADER: Final = Gauge("dstj_leader", "1 while this replica serves: it holds the lease, or there is no election.")

__all__ = [
    "API_REQUESTS",
    "JOBS",
    "LEADER",
    "MISSED_EVENTS",
    "PASSES",
    "QUEUE_DEPTH",
    "QUEUE_OLDEST",
    "REGISTRY",
    "REVIVED",
    "STATUS_WRITES",
    "TRANSITIONS",
    "WATCH_RESTARTS",
]
