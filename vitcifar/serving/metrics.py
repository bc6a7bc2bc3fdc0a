"""Prometheus metrics of the server: requests, latency by phase, the queue, and the version that serves."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitcifar.inference.session import Timing
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.prediction_queue import PredictionQueue
from vitcifar.serving.shadow import Shadow

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
GAUGES = {  # of a report -> what they are
    "num_images": "Different images in the window of the monitor",
    "estimated_accuracy": "Accuracy estimated from calibrated confidences (CBPE)",
    "estimated_low": "Lower end of the 95% band of the estimated accuracy",
    "estimated_high": "Upper end of the 95% band of the estimated accuracy",
    "not_confident": "Share of predictions below the threshold of confidence",
    "drift_p_value": "p-value of the test of drift against the reference embeddings",
    "drift": "1 while the test of drift alarms, at p <= 0.05",
}
OTHER = "other"  # the route of files and of what does not exist


class PoolCollector(Collector):
    """The version that serves, read from the pool when somebody asks."""

    def __init__(self, pool: ModelPool) -> None:
        self.pool = pool

    def collect(self) -> Iterator[InfoMetricFamily | GaugeMetricFamily]:
        state = self.pool.state
        described = {
            "model": state.current.model_name,
            "version": str(state.current.version),
            "spec": self.pool.spec,
            "release_id": state.current.manifest.release_id,
            "release_digest": state.current.digest,
        }
        yield InfoMetricFamily("vitcifar_version", "The version that serves by default", described)
        yield GaugeMetricFamily("vitcifar_problem", "1 while it may not be the right version", bool(state.problem))


class MonitorCollector(Collector):
    """What the monitor reports of each version; what it cannot say has no sample."""

    def __init__(self, pool: ModelPool) -> None:
        self.pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        reports = self.pool.monitor.reports()
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"vitcifar_monitor_{name.removeprefix('num_')}", text, labels=["version"])
            for report in reports:
                if (value := getattr(report, name)) is not None:
                    gauge.add_metric([str(report.version)], float(value))
            yield gauge


class ShadowCollector(Collector):
    """What the challenger in the shadow said of the same images."""

    def __init__(self, shadow: Shadow) -> None:
        self.shadow = shadow

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        counts = CounterMetricFamily(
            "vitcifar_shadow_images",
            "Images of the served version by what the challenger in the shadow did",
            labels=["version", "shadow", "outcome"],
        )
        share = GaugeMetricFamily(
            "vitcifar_shadow_agreement", "Share of images with the same label", labels=["version", "shadow"]
        )
        for one in self.shadow.agreements():
            pair = [str(one.version), str(one.shadow)]
            for outcome in ("agreed", "disagreed", "dropped", "failed"):
                counts.add_metric([*pair, outcome], getattr(one, outcome))
            if one.share is not None:
                share.add_metric(pair, one.share)
        yield counts
        yield share


class Metrics:
    """The metrics of one server."""

    def __init__(self, pool: ModelPool, queue: PredictionQueue, shadow: Shadow | None = None) -> None:
        self._registry = own = CollectorRegistry()
        labels = ["route", "version", "status"]
        self.requests = Counter("vitcifar_requests", "Requests by route, version and status", labels, registry=own)
        self.errors = Counter("vitcifar_errors", "Requests with a status of 400 or more", labels, registry=own)
        self.images = Counter("vitcifar_images", "Images by version and outcome", ["version", "outcome"], registry=own)
        self.latency = Histogram(
            "vitcifar_latency_seconds", "Latency of a prediction by phase", ["phase"], buckets=BUCKETS, registry=own
        )
        Gauge("vitcifar_queue_depth", "Requests that wait for a thread", registry=own).set_function(lambda: queue.depth)
        own.register(PoolCollector(pool))
        own.register(MonitorCollector(pool))
        if shadow:
            own.register(ShadowCollector(shadow))
        ProcessCollector(registry=own)

    def observe(self, version: int | None, timing: Timing | None, queue_ms: float) -> None:
        """Count an image: its timing, or None for one that could not be classified."""
        self.images.labels(version, "classified" if timing else "error").inc()
        if timing:
            phases = {"queue": queue_ms, "decode": timing.decode_ms, "inference": timing.inference_ms}
            for phase, milliseconds in phases.items():
                self.latency.labels(phase).observe(milliseconds / 1e3)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestCounter:
    """Counts every response; a route names the version that answered in `request.state.version`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                labels = (_route(scope), str(scope.get("state", {}).get("version", "")), str(status))
                self.metrics.requests.labels(*labels).inc()
                if status >= 400:
                    self.metrics.errors.labels(*labels).inc()
            await send(message)

        await self.app(scope, receive, send_counted)


def _route(scope: Scope) -> str:
    """The route as it is written in the code, so that the paths of strangers make no labels."""
    return str(getattr(scope.get("route"), "path", OTHER)) if "endpoint" in scope else OTHER
