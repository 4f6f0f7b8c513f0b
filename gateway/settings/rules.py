"""What no single setting shows: settings that contradict each other, and those that are legal but rarely meant.

Pure: a config in, findings out. Each rule is one function; a rule never looks at a file or at this machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.config import Backend, Config, RateLimits
from gateway.forwarded import is_loopback
from gateway.layout import lanes_of, layout
from gateway.schedule.settings import read_pins
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
    one_place = (_ports, _hosts, _tls, _isolation, _backend, _backend_left_alone, _devices, _apart)
    for rule in (*one_place, _schedule, _sizes, _times, _buckets, _one_bucket):
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


def _schedule(config: Config) -> Iterator[Finding]:
    schedule = config.schedule
    for name, read in (("pins", lambda: read_pins(schedule.pins, config.gpus)), ("shares", schedule.rules)):
        try:
            read()
        except ValueError as error:
            yield Finding((("schedule", name),), str(error))
    if schedule.enabled and schedule.pins and not config.jobs.journal:
        yield Finding((("schedule", "pins"), ("jobs", "journal")), "has no effect without a journal", warning=True)


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


def _isolation(config: Config) -> Iterator[Finding]:
    if config.auth.isolate and not config.jobs.journal:
        paths = (("auth", "isolate"), ("jobs", "journal"))
        yield Finding(paths, "needs [jobs] journal: without it nobody knows whose a job is")


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


def _each(config: Config) -> Iterator[tuple[Path, Backend]]:
    """Every backend with the path of its table."""
    for number, backend in enumerate(config.backends, 1):
        yield ("backend", str(number))[: 1 + (number > 1)], backend


def _backend(config: Config) -> Iterator[Finding]:
    for path, backend in _each(config):
        yield from _where(config, (*path, "url"), (*path, "start"), backend)


def _where(config: Config, path: Path, start: Path, backend: Backend) -> Iterator[Finding]:
    if backend.url.startswith("unix:"):
        if backend.start:
            yield Finding((path, start), _NOT_STARTED.format("a Unix socket"), warning=True)
        return
    parts = urlsplit(backend.url)
    host, port = parts.hostname or "", parts.port
    if not is_loopback(host):
        if backend.start:
            yield Finding((path, start), _NOT_STARTED.format(host), warning=True)
        return
    if not any(is_loopback(at) or at in {"0.0.0.0", "::"} for at in config.listen.host):
        return
    for name, ports in (("front_port", (config.listen.front_port,)), ("gpu_ports", config.listen.gpu_ports)):
        if port in ports:
            yield Finding(
                (path, ("listen", name)), f"port {port} is also in [listen] {name}: the gateway would call itself"
            )


_STARTED_WITH = (
    *("comfyui", "python", "args", "devices", "serialize", "allow_unknown", "threads"),
    *("warmup_workflow", "warmup_models"),
)


def _backend_left_alone(config: Config) -> Iterator[Finding]:
    for path, backend in _each(config):
        if backend.start:
            continue
        for name in _STARTED_WITH:
            if getattr(backend, name):
                paths = ((*path, name), (*path, "start"))
                yield Finding(paths, "has no effect with start = false", warning=True)
        if backend.share_weights != "on":
            paths = ((*path, "share_weights"), (*path, "start"))
            yield Finding(paths, "has no effect with start = false", warning=True)
        if backend.mode != "single":
            paths = ((*path, "mode"), (*path, "start"))
            yield Finding(paths, 'must be "single" with start = false: only what the gateway starts can be split')


def _devices(config: Config) -> Iterator[Finding]:
    ports = ("listen", "gpu_ports")
    lanes = lanes_of(config)
    for (path, backend), count in zip(_each(config), lanes, strict=True):
        if (devices := len(backend.devices)) and devices != count:
            if config.further or backend.lanes:
                yield Finding(((*path, "devices"), (*path, "lanes")), f"names {devices} devices for {count} lanes")
            else:
                message = f"names {devices} for {config.gpus} GPUs: one per port, or as COMFY_NUM_GPUS or --gpus says"
                yield Finding(((*path, "devices"), ports), message)
    if sum(lanes) != config.gpus:
        said = " + ".join(map(str, lanes))
        message = f"the backends have {said} lanes, but [listen] gpu_ports has {config.gpus} ports"
        yield Finding((("backend", "lanes"), ports), message)


def _apart(config: Config) -> Iterator[Finding]:
    """No two backends are at one address."""
    if sum(lanes_of(config)) != config.gpus:
        return
    seen: dict[str, int] = {}
    own = {config.listen.front_port, *config.listen.gpu_ports} - {0}
    for place in layout(config):
        url = place.backend.url
        path: Path = ("backend", "url")
        if url in seen:
            yield Finding((path,), f"GPU {seen[url]} and GPU {place.first} would both be behind {url}")
        seen.setdefault(url, place.first)
        if place.instance and urlsplit(url).port in own:
            yield Finding((path,), f"the process of GPU {place.first} would listen on {url}, which is in [listen]")


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
