"""Whether the operator still hears and still works; what the kubelet's liveness probe asks.

Deafness is measured, not assumed: every object that a list finds must have been told of by a watch
event before the next list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from deepseek_operator.objects.observed import OwnerKey

STUCK_S: Final = 300.0  # a pass has deadlines of seconds
DEAF_AFTER: Final = 3  # lists in a row that found what no event told


@dataclass
class Health:
    clock: Callable[[], float]
    oldest_s: Callable[[], float]  # of the queue
    tick_s: float  # seconds between two lists
    _heard: dict[OwnerKey, str] = field(default_factory=dict)
    _unheard: Mapping[OwnerKey, str] = field(default_factory=dict)
    _deaf: int = 0
    _ticked: float | None = None

    def heard(self, key: OwnerKey, version: str) -> None:
        """A watch event told of `version` of the training job."""
        self._heard[key] = version

    def listed(self, versions: Mapping[OwnerKey, str]) -> tuple[OwnerKey, ...]:
        """Keys among all those that exist whose present version no event has told of since the last list."""
        self._heard = {key: version for key, version in self._heard.items() if key in versions}
        unheard = {key: version for key, version in versions.items() if self._heard.get(key) != version}
        missed = tuple(key for key, version in unheard.items() if self._unheard.get(key) == version)
        self._unheard = unheard
        self._deaf = self._deaf + 1 if missed else 0
        return missed

    def ticked(self) -> None:
        """The loop that lists is alive, whether or not the API server answers."""
        self._ticked = self.clock()

    def problems(self) -> tuple[str, ...]:
        """Why this process should be restarted; empty if it should not."""
        found = []
        if self._deaf >= DEAF_AFTER:
            found.append(f"no watch event told of what the last {self._deaf} lists found")
        if (waited := self.oldest_s()) > STUCK_S:
            found.append(f"a pass has been due for {waited:.0f} s")
        if self._ticked is not None and (silent := self.clock() - self._ticked) > 3 * self.tick_s:
            found.append(f"no list was tried for {silent:.0f} s")
        return tuple(found)
