"""The webhook's metrics, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from istio_init.kubernetes.webhook.review import Outcome

BAD_REQUEST, TOO_LARGE, TOO_MUCH, FAILED = "bad_request", "too_large", "too_much", "failed"
OUTCOMES = (*Outcome, BAD_REQUEST, TOO_LARGE, TOO_MUCH, FAILED)
# Around the target of 50 ms, up to the API server's default timeout of 10 s.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0)  # seconds


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._reviews = Counter("istio_init_webhook_reviews", "Reviews, by outcome.", ["outcome"], registry=self._registry)
        for outcome in OUTCOMES:
            self._reviews.labels(outcome)  # exported as 0 from the start, so that rate() sees the first failure
        self.seconds = Histogram(
            "istio_init_webhook_review_seconds",
            "Time from a request's head to its response.",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.in_flight = Gauge("istio_init_webhook_in_flight", "Reviews in flight.", registry=self._registry)
        self._loads = Counter(
            "istio_init_webhook_certificate_loads", "Certificate reloads, by result.", ["result"], registry=self._registry
        )
        for result in ("loaded", "refused"):
            self._loads.labels(result)

    def count(self, outcome: str) -> None:
        """Count a review; its outcome is one of `OUTCOMES`."""
        self._reviews.labels(outcome).inc()

    def count_load(self, *, loaded: bool) -> None:
        """Count a certificate reload, and whether it succeeded."""
        self._loads.labels("loaded" if loaded else "refused").inc()

    def text(self) -> bytes:
        """Return all metrics in the text format, version 0.0.4."""
        return generate_latest(self._registry)
