"""How often something may happen for one key: `burst` at once, then `per_s` a second. What is beyond is not stored anywhere."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable


class Pace:
    """Token buckets, one a key; of more than `most_keys` the least recently asked for begin anew."""

    def __init__(
        self, *, burst: int, per_s: float, most_keys: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        self._most_keys = most_keys
        self._clock = clock
        #: key -> (how many are left, as of when); the least recently asked for first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> int | None:
        """None: it may happen, and counts. Else the whole seconds until it may."""
        now = self._clock()
        left = self._left_at(key, now)
        self._left.pop(key, None)
        self._left[key] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > self._most_keys:
            self._left.popitem(last=False)
        return self._wait_s(left)

    def peek(self, key: str) -> int | None:
        """What take would say; nothing is counted, and the key counts as not asked for."""
        return self._wait_s(self._left_at(key, self._clock()))

    def _left_at(self, key: str, now: float) -> float:
        left, at = self._left.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._per_s)

    def _wait_s(self, left: float) -> int | None:
        return None if left >= 1 else math.ceil((1 - left) / self._per_s)
