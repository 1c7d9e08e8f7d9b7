"""What the server measures, as Prometheus text."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Metrics of one server.

    Attributes:
        requests: number of requests, by route and status.
        seconds: duration of requests, by route.
        batches: number of requests in each batch, by model.
    """

    def __init__(self, num_waiting: Callable[[], Mapping[str, int]]):
        """`num_waiting`: returns the number of waiting requests of each model."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tf_mlm_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "tf_mlm_request_seconds", "Duration of requests.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.batches = Histogram(
            "tf_mlm_batch_requests", "Requests per batch.", ["model"], buckets=_REQUESTS, registry=self._registry
        )
        self._registry.register(_Waiting(num_waiting))

    def as_text(self) -> bytes:
        return generate_latest(self._registry)


class _Waiting(Collector):
    """The lengths of the queues, read when the metrics are."""

    def __init__(self, num_waiting: Callable[[], Mapping[str, int]]):
        self._num_waiting = num_waiting

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("tf_mlm_waiting_requests", "Requests that wait for a batch.", labels=["model"])
        for model, number in self._num_waiting().items():
            family.add_metric([model], number)
        yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Without it, the registry would call `collect` when the queues do not exist yet."""
        return [GaugeMetricFamily("tf_mlm_waiting_requests", "", labels=["model"])]
