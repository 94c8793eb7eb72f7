"""Labels and annotations that profiles and jobs put on pods, beside those of the operator."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_operator.jobs.resources import LabelValue
from deepseek_trainer.contract.rules import Model, Rule

_NAME: Final = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN: Final = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?/"
_KEY: Final = f"({_DOMAIN})?{_NAME}"
# Selectors, the Job controller and Kueue find pods by these.
_RESERVED: Final = (
    "(training[.]dstj[.]io/|batch[.]kubernetes[.]io/|kueue[.]x-k8s[.]io/|app[.]kubernetes[.]io/"
    "|job-name|controller-uid).*"
)
_FIELDS: Final = ("labels", "annotations")

Key = Annotated[str, Field(max_length=317)]
MetadataPrefix = Annotated[str, Field(pattern=f"^{_DOMAIN}[-A-Za-z0-9_.]*$", max_length=253)]


def _every_key(condition: str) -> str:
    """CEL: whether `condition` holds for every key `k` of the labels and of the annotations."""
    return " && ".join(f"(!has(self.{field}) || self.{field}.all(k, {condition}))" for field in _FIELDS)


class PodMetadata(Model):
    """Labels and annotations of pods."""

    labels: Annotated[dict[Key, LabelValue] | None, Field(max_length=16, description="Labels.")] = None
    annotations: Annotated[
        dict[Key, Annotated[str, Field(max_length=512, pattern="^[ -~]*$")]] | None,
        Field(max_length=16, description="Annotations; values of printable ASCII."),
    ] = None

    rules: ClassVar = (
        Rule(
            _every_key(f"k.matches('^{_KEY}$')"),
            "keys of labels and annotations must be names of at most 63 letters, digits, '-', '_' and '.', with a "
            "domain and '/' before if wanted: sidecar.istio.io/inject",
            lambda self: all(re.fullmatch(_KEY, key) for key in self.keys),
        ),
        Rule(
            _every_key(f"!k.matches('^{_RESERVED}$')"),
            "labels and annotations of training.dstj.io/, app.kubernetes.io/, batch.kubernetes.io/ and "
            "kueue.x-k8s.io/, and job-name and controller-uid, are set by the operator and by the controllers of Jobs "
            "and queues: leave them out",
            lambda self: not any(re.fullmatch(_RESERVED, key) for key in self.keys),
        ),
    )

    @property
    def keys(self) -> tuple[str, ...]:
        return (*(self.labels or {}), *(self.annotations or {}))

    def keys_without(self, prefixes: Iterable[str]) -> list[str]:
        """The keys that begin with none of `prefixes`."""
        return [key for key in self.keys if not key.startswith(tuple(prefixes))]


def merged(*layers: PodMetadata | None) -> dict[str, dict[str, str]]:
    """The labels and annotations of all layers; a later one wins."""

    def union(maps: Iterable[Mapping[str, str] | None]) -> dict[str, str]:
        return {key: value for each in maps for key, value in (each or {}).items()}

    present = [layer for layer in layers if layer is not None]
    return {
        "labels": union(layer.labels for layer in present),
        "annotations": union(layer.annotations for layer in present),
    }
