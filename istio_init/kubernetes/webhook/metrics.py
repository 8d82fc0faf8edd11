"""What the webhook counts, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from istio_init.kubernetes.webhook.review import Outcome

BAD_REQUEST, TOO_LARGE, FAILED = "bad_request", "too_large", "failed"
OUTCOMES = (*Outcome, BAD_REQUEST, TOO_LARGE, FAILED)
# Around the promise of 50 ms, up to the 10 s after which an API server gives up.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0)  # seconds


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._reviews = Counter(
            "istio_init_webhook_reviews", "Reviews, by what became of them.", ["outcome"], registry=self._registry
        )
        for outcome in OUTCOMES:
            self._reviews.labels(outcome)  # there from the start, at 0, so that a first failure is a rise
        self.seconds = Histogram(
            "istio_init_webhook_review_seconds",
            "Time from a request's head to its answer.",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.in_flight = Gauge("istio_init_webhook_in_flight", "Reviews under way.", registry=self._registry)
        self._loads = Counter(
            "istio_init_webhook_certificate_loads", "Changes of the certificate.", ["result"], registry=self._registry
        )
        for result in ("loaded", "refused"):
            self._loads.labels(result)

    def count(self, outcome: str) -> None:
        """Count a review; its outcome is one of `OUTCOMES`."""
        self._reviews.labels(outcome).inc()

    def count_load(self, *, loaded: bool) -> None:
        """Count a change of the certificate's files, and whether it could be used."""
        self._loads.labels("loaded" if loaded else "refused").inc()

    def text(self) -> bytes:
        """Give all of them in the text format, version 0.0.4."""
        return generate_latest(self._registry)
