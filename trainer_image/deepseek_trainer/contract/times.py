"""Times as Kubernetes writes them (metav1.Time): RFC 3339, UTC, whole seconds."""

from datetime import UTC, datetime


def rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_now() -> str:
    return rfc3339(datetime.now(UTC))
