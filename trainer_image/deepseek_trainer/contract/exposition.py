"""Pages of Prometheus metrics, as the operator and rank 0 serve them."""

import re
from typing import Final

_METRIC: Final = re.compile(rb"^(# (?:HELP|TYPE) )?dstj_")


def with_former_names(page: bytes) -> bytes:
    """`page`, with each metric `dstj_*` once more as `dst_*`, as it was called up to 0.1; for one release."""
    lines = page.splitlines(keepends=True)
    return page + b"".join(_METRIC.sub(rb"\1dst_", line) for line in lines if _METRIC.match(line))
