"""What no single setting shows: settings that contradict each other, and those that are legal but rarely meant.

Pure: a config in, findings out. Each rule is one function; a rule never looks at a file or at this machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.config import Config, RateLimits
from gateway.forwarded import is_loopback
from gateway.settings.lines import Path
from gateway.spec import MB, MOST_GPUS

COMFYUI_UPLOAD = 100 * MB
"""Bytes of ComfyUI's own bound on a body, unless ``--max-upload-size`` changes it (comfy/cli_args.py)."""

PAGE_LOAD = 430
"""Burst that one cold load of the web page (471 requests) needs at 10 a second; measured."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with the settings at ``paths``, the first of which names the place."""

    paths: tuple[Path, ...]
    message: str
    warning: bool = False


def findings(config: Config) -> Iterator[Finding]:
    """Everything to say about a config whose single values are all valid."""
    for rule in (_ports, _hosts, _tls, _backend, _backend_left_alone, _devices, _sizes, _times, _buckets, _one_bucket):
        yield from rule(config)


def _ports(config: Config) -> Iterator[Finding]:
    listen = config.listen
    gpu_ports, front = ("listen", "gpu_ports"), ("listen", "front_port")
    if not listen.gpu_ports:
        yield Finding((gpu_ports,), "must name at least one port: their number is the number of GPUs")
    if len(listen.gpu_ports) > MOST_GPUS:
        yield Finding((gpu_ports,), f"names {len(listen.gpu_ports)} GPUs, {MOST_GPUS} is the most")
    seen: dict[int, int] = {}
    for gpu, port in enumerate(listen.gpu_ports):
        if port and port in seen:
            yield Finding((gpu_ports,), f"GPU {seen[port]} and GPU {gpu} both have port {port}")
        seen.setdefault(port, gpu)
    if listen.front_port and listen.front_port in seen:
        gpu = seen[listen.front_port]
        yield Finding((front, gpu_ports), f"port {listen.front_port} is that of GPU {gpu} as well")


def _hosts(config: Config) -> Iterator[Finding]:
    path = ("listen", "host")
    hosts = config.listen.host
    if not hosts:
        yield Finding((path,), "must name at least one address")
    if len(set(hosts)) < len(hosts):
        yield Finding((path,), "names an address twice")
    open_to = [host for host in hosts if not is_loopback(host)]
    if open_to and config.auth.allow_open:
        yield Finding(
            (path, ("auth", "allow_open")),
            f"{', '.join(open_to)} can be reached from other machines and allow_open lets them in without a key: "
            "everybody who can connect may run workflows, read and delete results unless keys are made",
            warning=True,
        )


def _tls(config: Config) -> Iterator[Finding]:
    if config.tls.key and not config.tls.certificate:
        yield Finding((("tls", "key"), ("tls", "certificate")), "has no effect without certificate")
    others = [host for host in config.listen.host if not is_loopback(host)]
    if others and not config.tls.certificate:
        yield Finding(
            (("listen", "host"), ("tls", "certificate")),
            f"{', '.join(others)} without [tls] certificate: keys and pictures cross the network in clear",
            warning=True,
        )


_NOT_STARTED = "a backend that the gateway starts listens on this machine's loopback, not on {}; set start = false"


def _backend(config: Config) -> Iterator[Finding]:
    path = ("backend", "url")
    url = config.backend.url
    if url.startswith("unix:"):
        if config.backend.start:
            yield Finding((path, ("backend", "start")), _NOT_STARTED.format("a Unix socket"), warning=True)
        return
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if not is_loopback(host):
        if config.backend.start:
            yield Finding((path, ("backend", "start")), _NOT_STARTED.format(host), warning=True)
        return
    if not any(is_loopback(at) or at in {"0.0.0.0", "::"} for at in config.listen.host):
        return
    for name, ports in (("front_port", (config.listen.front_port,)), ("gpu_ports", config.listen.gpu_ports)):
        if port in ports:
            yield Finding(
                (path, ("listen", name)), f"port {port} is also in [listen] {name}: the gateway would call itself"
            )


def _backend_left_alone(config: Config) -> Iterator[Finding]:
    if config.backend.start:
        return
    for name in ("comfyui", "python", "args", "devices", "serialize", "allow_unknown", "threads", "warmup_workflow"):
        if getattr(config.backend, name):
            path = ("backend", name)
            yield Finding((path, ("backend", "start")), "has no effect with start = false", warning=True)
    if config.backend.share_weights != "on":
        path = ("backend", "share_weights")
        yield Finding((path, ("backend", "start")), "has no effect with start = false", warning=True)


def _devices(config: Config) -> Iterator[Finding]:
    devices, gpus = len(config.backend.devices), config.gpus
    if devices and devices != gpus:
        paths = (("backend", "devices"), ("listen", "gpu_ports"))
        yield Finding(paths, f"names {devices} for {gpus} GPUs: one per port, or as COMFY_NUM_GPUS or --gpus says")


def _sizes(config: Config) -> Iterator[Finding]:
    limits = config.limits
    if limits.request_line > limits.head:
        paths = (("limits", "request_line"), ("limits", "head"))
        yield Finding(paths, "is larger than head, of which it is a part")
    if limits.idle_connections > limits.pool_connections:
        paths = (("limits", "idle_connections"), ("limits", "pool_connections"))
        yield Finding(paths, "is larger than pool_connections, of which it is a part")
    raised = any(arg.startswith("--max-upload-size") for arg in config.backend.args)
    if limits.body > COMFYUI_UPLOAD and not raised:
        yield Finding(
            (("limits", "body"), ("backend", "args")),
            "is above ComfyUI's own bound of 100 MB, which refuses the rest; "
            f'add args = ["--max-upload-size", "{-(-limits.body // MB)}"] to [backend]',
            warning=True,
        )


def _times(config: Config) -> Iterator[Finding]:
    if config.backend.restart_min > config.backend.restart_max:
        paths = (("backend", "restart_min"), ("backend", "restart_max"))
        yield Finding(paths, "is larger than restart_max")
    if config.timeouts.backend_idle >= 75:
        yield Finding(
            (("timeouts", "backend_idle"),),
            "is not below the 75 s after which many servers close: the gateway would send on connections just closed",
            warning=True,
        )


def _buckets(config: Config) -> Iterator[Finding]:
    for name in ("submit", "upload", "control", "read", "events", "all"):
        bucket = getattr(config.rate, name)
        if bucket.delay is not None and bucket.delay > bucket.burst:
            paths = (("rate", name, "delay"), ("rate", name, "burst"))
            yield Finding(paths, "is above the burst, which is the same as nodelay = true", warning=True)


def _one_bucket(config: Config) -> Iterator[Finding]:
    rate, default = config.rate, RateLimits()
    unused = ("submit", "upload", "control", "read", "events") if rate.scope == "all" else ("all",)
    for name in unused:
        if getattr(rate, name) != getattr(default, name):
            path = ("rate", name)
            yield Finding((path, ("rate", "scope")), f'has no effect with scope = "{rate.scope}"', warning=True)
    if rate.scope == "all" and rate.enabled and not rate.dry_run and rate.all.refuse and rate.all.burst < PAGE_LOAD:
        nodelay = rate.all.delay is None
        effect = "is refused and the page stays blank" if nodelay else "waits and the page takes most of a minute"
        yield Finding(
            (("rate", "scope"), ("rate", "all")),
            f"one load of the web page asks for 471 files; with burst {rate.all.burst} most of it {effect}",
            warning=True,
        )
