"""Weighers: how good each pool that passed is. Names, figures and signs are Cinder's.

One's own: a subclass of `Weigher`, under its name in the entry-point group `volctl.scheduler.weighers`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from volctl.scheduler import plugins
from volctl.scheduler.pools import Pool, Request, scope, virtual_free

GROUP = "volctl.scheduler.weighers"


class Weigher(ABC):
    """Gives one pool a figure, higher for more; the multiplier's sign says whether more is better."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    @abstractmethod
    def weigh(self, pool: Pool, request: Request) -> float | None:
        """The figure; None, infinite or NaN is no figure, and comes last under either sign."""


class CapacityWeigher(Weigher):
    """Virtual free room: positive multipliers spread, negative ones stack (cinder weights/capacity.py).

    Thin: available x ratio - provisioned; thick: min(available - provisioned, free). Unknown and infinite
    room comes last under either sign, as in Cinder: a pool that tells its room is preferred.
    """

    def weigh(self, pool: Pool, request: Request) -> float | None:
        return virtual_free(pool, request)


class AllocatedCapacityWeigher(Weigher):
    """Bytes of our live volumes there; Cinder's multiplier is -1.0 (spread), positive ones stack."""

    def weigh(self, pool: Pool, request: Request) -> float | None:
        return pool.provisioned


class VolumeNumberWeigher(Weigher):
    """Our live volumes there; Cinder's multiplier is -1.0 (spread), positive ones stack."""

    def weigh(self, pool: Pool, request: Request) -> float | None:
        return pool.volumes


class GoodnessWeigher(Weigher):
    """The backend's own `goodness_function`, 0 to 100 and held there; without one, or a value, it is 0.

    True is 100 (cinder weights/goodness.py).
    """

    def weigh(self, pool: Pool, request: Request) -> float | None:
        if pool.goodness_function is None:
            return 0
        from volctl.scheduler import expressions  # most backends have none, and reading it costs milliseconds

        try:
            value = expressions.evaluate(pool.goodness_function, scope(pool, request))
        except expressions.EvaluationError:
            return 0
        if isinstance(value, str) or value != value:
            return 0
        return 100 if value is True else float(min(100, max(0, value)))


class ChanceWeigher(Weigher):
    """Drawn by lot; the same seed draws the same lot for the same backend."""

    def weigh(self, pool: Pool, request: Request) -> float | None:
        import random

        seed = None if self.seed is None else f"{self.seed}:{pool.name}"
        return random.Random(seed).random()


def normalise(weights: Sequence[float | None], multiplier: float) -> list[float]:
    """0..1 over the candidates, then multiplied; all equal is 0 (cinder base_weight.py).

    What is no figure stands a little behind the worst of the others.
    """
    known = [weight for weight in weights if weight is not None and math.isfinite(weight)]
    if not known:
        return [0.0] * len(weights)
    low, high = min(known), max(known)
    # large enough to be seen beside large figures, where adding 1 would be lost in a float
    step = max(high - low, abs(low) * 1e-6, abs(high) * 1e-6, 1) / 100
    last = low - step if multiplier > 0 else high + step
    filled = [weight if weight is not None and math.isfinite(weight) else last for weight in weights]
    low, high = min(filled), max(filled)
    # adding 0.0 makes -0.0 a plain zero
    return [multiplier * (weight - low) / (high - low) + 0.0 if high > low else 0.0 for weight in filled]


WEIGHERS: dict[str, type[Weigher]] = {
    kind.__name__: kind
    for kind in (CapacityWeigher, AllocatedCapacityWeigher, VolumeNumberWeigher, GoodnessWeigher, ChanceWeigher)
}


def find(name: str) -> type[Weigher]:
    """Ours, else a third party's; `ConfigError` names the nearest known one."""
    return plugins.find(name, WEIGHERS, Weigher, GROUP)  # type: ignore[type-abstract]  # a subclass of it is found
