"""Times as Kubernetes writes them (metav1.Time): RFC 3339, UTC, whole seconds."""

from datetime import UTC, datetime


def rfc3339(time: datetime) -> str:
    # Not strftime, which writes the year 99 with two digits.
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def utc_now() -> str:
    return rfc3339(datetime.now(UTC))
