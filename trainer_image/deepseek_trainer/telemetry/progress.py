"""What rank 0 tells the outside while it runs: /progress (JSON) for the operator, /metrics for Prometheus."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from deepseek_trainer.contract import progress as contract
from deepseek_trainer.contract.exposition import with_former_names
from deepseek_trainer.contract.times import utc_now

# Name, help, field of /progress that it shows.
GAUGES = (
    ("dstj_trainer_step", "Optimizer steps done.", "step"),
    ("dstj_trainer_max_steps", "Optimizer steps planned.", "maxSteps"),
    ("dstj_trainer_epoch", "Passes over the data done.", "epoch"),
    ("dstj_trainer_loss", "Training loss of the last logged step [nats/token].", "loss"),
    ("dstj_trainer_eval_loss", "Loss of the last evaluation [nats/token].", "evalLoss"),
    ("dstj_trainer_learning_rate", "Learning rate of the last logged step.", "learningRate"),
    ("dstj_trainer_grad_norm", "Gradient norm of the last logged step, before clipping.", "gradNorm"),
    ("dstj_trainer_restarts", "Restarts of the ranks inside their pods.", "restartCount"),
)
# The same; absent until they are known, for 0 would be a claim.
MEASURED_GAUGES = (
    (
        "dstj_trainer_tokens_per_second",
        "Tokens trained per second over all ranks, padding left out.",
        "tokensPerSecond",
    ),
    ("dstj_trainer_images_per_second", "Images trained per second over all ranks.", "imagesPerSecond"),
    ("dstj_trainer_samples_per_second", "Rows trained per second over all ranks.", "samplesPerSecond"),
    (
        "dstj_trainer_mfu",
        "Share of the GPUs' peak that the model needs, by PaLM's count (arXiv:2204.02311), padding left out.",
        "mfu",
    ),
    (
        "dstj_trainer_hfu",
        "Share of the GPUs' peak with what is computed for padding, and again where optimization.recompute is Full.",
        "hfu",
    ),
    (
        "dstj_trainer_data_wait_share",
        "Share of the step time in which the rank that waited longest waited for data.",
        "dataWaitShare",
    ),
    (
        "dstj_trainer_peak_memory_bytes",
        "Of the largest rank: allocated by torch on its GPU; on the CPU resident.",
        "peakMemoryBytes",
    ),
    (
        "dstj_trainer_rank_skew",
        "Time that the slowest rank computes before it waits for others, over the median rank's. DDP only.",
        "rankSkew",
    ),
)
CHECKPOINT_GAUGES = (
    ("dstj_checkpoint_step", "Step of the last complete checkpoint.", "step"),
    ("dstj_checkpoint_size_bytes", "Size of the last complete checkpoint.", "sizeBytes"),
    ("dstj_checkpoint_duration_seconds", "Time until the last checkpoint was committed.", "seconds"),
    ("dstj_checkpoint_stall_seconds", "Time the last checkpoint held up training.", "stallSeconds"),
)


class Progress:
    """The latest facts, thread-safe; a field appears when it is first known."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._gauges = {field: Gauge(name, text, registry=self._registry) for name, text, field in GAUGES}
        self._checkpoint = {f: Gauge(name, text, registry=self._registry) for name, text, f in CHECKPOINT_GAUGES}
        self._counters: dict[str, Counter] = {}

    def update(self, **facts: Any) -> None:
        """Take in facts by their names in the JSON of /progress."""
        if unknown := facts.keys() - contract.fields():
            raise TypeError(f"/progress has no field {sorted(unknown)}: give it one in contract/progress.py")
        with self._lock:
            self._facts |= facts | {"updatedTime": utc_now()}
        for name, text, field in MEASURED_GAUGES:
            if facts.get(field) is not None and field not in self._gauges:
                self._gauges[field] = Gauge(name, text, registry=self._registry)
        _show(self._gauges, facts)
        _show(self._checkpoint, facts.get("lastCheckpoint") or {})

    def count(self, unit: str, amount: int) -> None:
        """So much more was trained, in the task's unit: tokens, images."""
        if unit not in self._counters:
            help_text = f"{unit.capitalize()} trained, padding left out."
            self._counters[unit] = Counter(f"dstj_trainer_{unit}", help_text, registry=self._registry)
        self._counters[unit].inc(amount)

    def known(self) -> contract.Progress:
        with self._lock:
            return contract.Progress.model_validate(self._facts)

    def to_json(self) -> bytes:
        return self.known().to_json()

    def to_prometheus(self) -> bytes:
        return with_former_names(generate_latest(self._registry))


def _show(gauges: dict[str, Gauge], facts: dict[str, Any]) -> None:
    for field, gauge in gauges.items():
        if (value := facts.get(field)) is not None:
            gauge.set(value)


class _Server(ThreadingHTTPServer):
    """Listens on an IPv4 or IPv6 address; on `::` for both."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _listening(node_address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> _Server:
    if _is_loopback(node_address):
        return _Server(node_address, port, handler)
    try:
        return _Server("::", port, handler)
    except OSError:  # the kernel has no IPv6
        return _Server("", port, handler)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:  # a name, as in a pod
        return False


def serve(progress: Progress, node_address: str, port: int) -> None:
    """Serve in a daemon thread: on loopback if the node is there, else everywhere, where the NetworkPolicy guards."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {
                "/progress": ("application/json", progress.to_json),
                "/metrics": (CONTENT_TYPE_LATEST, progress.to_prometheus),
            }
            if self.path not in pages:
                self.send_error(404)
                return
            kind, body = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body())

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not part of the run's story."""

    server = _listening(node_address, port, Handler)
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
