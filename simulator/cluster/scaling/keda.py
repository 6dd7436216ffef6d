"""KEDA: between none and one replica by itself, above that through an HPA.

Source: `kedacore/keda` @ 8b4f083, `pkg/scaling/executor/scale_scaledobjects.go`, `apis/keda/v1alpha1/*_types.go`.
"""

from __future__ import annotations

from simulator.cluster.scaling.hpa import Hpa
from simulator.cluster.scaling.scaler import Autoscaler, Counts, Seen, total


class Keda(Autoscaler):
    """A scaled object with one trigger.

    Parameters
    ----------
    hpa : the HPA that it makes, of the external metric with the trigger's threshold.
    metric, activation : the trigger, and the value above which it is active.
    least, idle : replicas while it is active, and while it is not (None for those of the HPA).
    polling_s, cooldown_s, initial_cooldown_s : time between two looks, and without activity before replicas go.
    """

    def __init__(
        self,
        hpa: Hpa,
        metric: str,
        *,
        activation: float = 0.0,
        least: int = 0,
        idle: int | None = None,
        polling_s: float = 30.0,
        cooldown_s: float = 300.0,
        initial_cooldown_s: float = 0.0,
    ) -> None:
        self._hpa, self._metric, self._activation = hpa, metric, activation
        self._least, self._idle = least, idle
        self._polling_s, self._cooldown_s, self._initial_s = polling_s, cooldown_s, initial_cooldown_s
        self._poll_s = self._sync_s = 0.0
        self._active_s: float | None = None
        self.every_s, self.collect_s = min(polling_s, hpa.every_s), hpa.collect_s

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """As of the base."""
        wanted, rest = counts.wanted, self._idle or 0
        if now_s >= self._sync_s:
            self._sync_s += self._hpa.every_s
            if wanted > rest:
                wanted = self._hpa.desired(seen, counts, now_s)
        if now_s >= self._poll_s:
            self._poll_s += self._polling_s
            wanted = self._polled(total(self._metric, seen) > self._activation, wanted, now_s)
        return wanted

    def _polled(self, active: bool, wanted: int, now_s: float) -> int:
        rest = self._idle or 0
        if active:
            self._active_s = now_s
            return max(self._least, 1) if wanted <= rest else wanted
        since_s, wait_s = (0.0, self._initial_s) if self._active_s is None else (self._active_s, self._cooldown_s)
        may_rest = self._idle is not None or not self._least
        return rest if may_rest and now_s > since_s + wait_s else wanted
