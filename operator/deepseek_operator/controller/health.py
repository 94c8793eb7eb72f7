"""Whether the operator still hears and still works.  The kubelet's liveness probe asks for it.

Deafness is measured, not assumed: a watch event must report every object that a list finds, before the next list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from deepseek_operator.objects.observed import OwnerKey

STUCK_S: Final = 300.0  # the deadlines within a pass are seconds
DEAF_AFTER: Final = 3  # so many lists in a row found something that no event had reported


@dataclass
class Health:
    clock: Callable[[], float]
    oldest_s: Callable[[], float]  # how long the oldest pass of the queue has been due
    tick_s: float  # between two lists
    _heard: dict[OwnerKey, str] = field(default_factory=dict)
    _unheard: Mapping[OwnerKey, str] = field(default_factory=dict)
    _deaf: int = 0
    _ticked: float | None = None

    def heard(self, key: OwnerKey, version: str) -> None:
        """A watch event reported `version` of an object."""
        self._heard[key] = version

    def listed(self, versions: Mapping[OwnerKey, str]) -> tuple[OwnerKey, ...]:
        """The keys of objects whose present version no event has reported since the last list, given all that exist."""
        self._heard = {key: version for key, version in self._heard.items() if key in versions}
        unheard = {key: version for key, version in versions.items() if self._heard.get(key) != version}
        missed = tuple(key for key, version in unheard.items() if self._unheard.get(key) == version)
        self._unheard = unheard
        self._deaf = self._deaf + 1 if missed else 0
        return missed

    def ticked(self) -> None:
        """Note that the loop that lists is alive, whether or not the API server answers."""
        self._ticked = self.clock()

    def problems(self) -> tuple[str, ...]:
        """Why this process should be restarted.  Empty if it should not."""
        found = []
        if self._deaf >= DEAF_AFTER:
            found.append(f"no watch event reported what the last {self._deaf} lists found")
        if (waited := self.oldest_s()) > STUCK_S:
            found.append(f"a pass has been due for {waited:.0f} s")
        if self._ticked is not None and (silent := self.clock() - self._ticked) > 3 * self.tick_s:
            found.append(f"no list was tried for {silent:.0f} s")
        return tuple(found)
