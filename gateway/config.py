"""``config.toml`` as frozen values: every setting with its default, its unit, its bounds and why one would touch it.

Pure. Text such as ``"10r/s"`` never travels past ``config_load``, which reads the bounds here; ``config.toml`` and
``docs/configuration.md`` are written from the sentences here.
"""

from dataclasses import dataclass, field

from gateway.config_auth import Auth, Tls
from gateway.config_cache import Cache
from gateway.config_tracing import Tracing
from gateway.schedule.settings import Schedule
from gateway.spec import (
    MB,
    Burst,
    Count,
    Delay,
    Flag,
    HeadSize,
    Host,
    IssueLock,
    Lanes,
    Level,
    LimitKey,
    LimitScope,
    LogFormat,
    Mode,
    Network,
    PerSecond,
    Port,
    Resubmit,
    Seconds,
    Share,
    ShareWeights,
    Size,
    Stay,
    Text,
    Url,
)
from gateway.webhook import Webhooks


@dataclass(frozen=True)
class Listen:
    """``[listen]``: where clients come in."""

    host: tuple[Host, ...] = ("127.0.0.1",)
    """Addresses to listen on; anything but loopback lets everybody who can reach it use the GPUs."""
    front_port: Port = 8180
    """The front door: balanced over all GPUs, /gpu0/ … by prefix, /metrics. 0 lets the system choose (tests)."""
    gpu_ports: tuple[Port, ...] = (8181, 8182, 8183, 8184)
    """Port of GPU 0, 1, …; their number is the number of GPUs. 0 lets the system choose (tests)."""
    backlog: Count = 1024
    """Connections that may wait to be accepted, per port (nginx listen backlog=)."""
    max_connections: Count = 10_000
    """Client connections open at once over all ports; each takes a file descriptor (nginx worker_connections)."""


@dataclass(frozen=True)
class Backend:
    """``[backend]``: a backend and how it is started; ``[[backend]]`` once for each where there are several."""

    url: Url = "http://127.0.0.1:8188"
    """Where the backend listens: http://HOST:PORT or unix:/PATH (nginx proxy_pass, without a path)."""
    mode: Mode = "single"
    """single: one process for all GPUs; per-gpu: one each, on url's port and the next; auto: as measured."""
    lanes: Lanes = 0
    """GPUs behind it, in the order of the tables; 0: all, and with several backends as many as devices, else one."""
    start: Flag = True
    """Start and supervise it; false when somebody else runs it (--no-backend)."""
    comfyui: Text = ""
    """Folder of a ComfyUI checkout; empty: COMFYUI_DIR, else the embedded engine."""
    python: Text = ""
    """Interpreter of that ComfyUI's environment; empty: .venv or venv in its folder, else our own."""
    args: tuple[Text, ...] = ()
    """Further arguments for ComfyUI, passed through as they are."""
    devices: tuple[Text, ...] = ()
    """One per lane (cuda:0, cpu); empty: one CUDA device per lane, or virtual lanes on the CPU."""
    data: Text = "data"
    """Folder of the embedded engine's models, input, output and temp."""
    serialize: tuple[Text, ...] = ()
    """Custom node packs whose jobs run one at a time."""
    allow_unknown: Flag = False
    """Run on a ComfyUI version that was not tried, when every patched name fits."""
    threads: Burst = 0
    """Threads of torch's own for one operation of a lane on the CPU; 0: torch's choice, every core for each lane."""
    issue_lock: IssueLock = "auto"
    """One lane at a time hands a model's step to its GPU: on, off, or auto where that was measured to be faster."""
    share_weights: ShareWeights = "on"
    """One host copy of ComfyUI's weights for all lanes; strict maps it read-only (a writer crashes), off: one each."""
    warmup_workflow: Text = ""
    """API-format workflow file that each lane runs before it is ready; empty: allocator warm-up only."""
    warmup_models: tuple[Text, ...] = ()
    """Models that each lane loads before it is ready, by folder and name: checkpoints/x.safetensors."""
    restart_min: Seconds = 1.0
    """Seconds before the first restart of a backend that died; doubled each time, forgotten after a minute of life."""
    restart_max: Seconds = 30.0
    """Seconds between restarts at most."""
    stop_timeout: Seconds = 5.0
    """Seconds a stopping backend gets before it is killed."""
    weight: Share = 1.0
    """How much a lane of it does beside a lane of the others: with 2 it is filled twice as far by the front door."""
    drain: Flag = False
    """true: the front door sends it nothing new; its own ports, and what it has, go on."""
    out_after: Count = 3
    """Failed looks or connections in a row after which the front door passes it over (nginx max_fails)."""
    back_after: Count = 2
    """Good looks in a row after which it is one of them again."""


@dataclass(frozen=True)
class Limits:
    """``[limits]``: sizes and numbers that bound memory."""

    body: Size = 100 * MB
    """Bytes of a request body, answered with 413 above it (nginx client_max_body_size)."""
    head: HeadSize = 64 * 1024
    """Bytes of a request or response head in all, 431 above it (nginx large_client_header_buffers)."""
    request_line: HeadSize = 16 * 1024
    """Bytes of method, target and version, 414 above it."""
    headers: Count = 128
    """Header fields in one head, 431 above it."""
    pool_connections: Count = 256
    """Connections to the backend for requests in flight; bridges do not count."""
    pool_wait: Seconds = 10.0
    """Seconds a request may wait for one of them before 503."""
    idle_connections: Count = 32
    """Kept-alive connections to the backend (nginx keepalive)."""


@dataclass(frozen=True)
class Timeouts:
    """``[timeouts]``: how long each wait may last."""

    connect: Seconds = 60.0
    """Seconds to connect to the backend (nginx proxy_connect_timeout)."""
    send: Seconds = 600.0
    """Seconds between two writes to the backend that make progress (nginx proxy_send_timeout)."""
    read: Seconds = 600.0
    """Seconds between two reads from the backend, the answer's head included (nginx proxy_read_timeout)."""
    client_head: Seconds = 10.0
    """Seconds from a connection's or request's first byte to its complete head (nginx client_header_timeout)."""
    client_body: Seconds = 60.0
    """Seconds between two reads of a request body (nginx client_body_timeout)."""
    client_idle: Seconds = 75.0
    """Seconds a client connection is kept without a request (nginx keepalive_timeout)."""
    client_write: Seconds = 600.0
    """Seconds between two writes to the client that make progress (nginx send_timeout)."""
    backend_idle: Seconds = 15.0
    """Seconds an unused backend connection is kept; stays below the backend's own keep-alive."""
    bridge_close: Seconds = 10.0
    """Seconds from the first closed direction of a bridge to its end."""
    drain: Seconds = 10.0
    """Seconds from the stop signal to the end of what is in flight."""


@dataclass(frozen=True)
class Rate:
    """One bucket as in nginx ``limit_req``; ``delay = None`` is ``nodelay``, 0 is neither word."""

    rate: PerSecond
    """Requests a second, refilled continuously: "10r/s", "600r/m" or a number."""
    burst: Burst
    """Requests above the rate that are let in, so that burst + 1 pass from cold."""
    delay: Delay = None
    """In place of nodelay: so many of the burst pass at once, the others are spaced at the rate."""
    refuse: Flag = True
    """false: what is above the burst is held back (up to max_delay) instead of refused with 429."""


@dataclass(frozen=True)
class RateLimits:
    """``[rate]``: token buckets per GPU; rate, burst, nodelay and delay mean what they mean in nginx's limit_req."""

    enabled: Flag = True
    """false switches all limits off."""
    key: LimitKey = "client"
    """client: one bucket per client address (IPv6: per /64) within each GPU; gpu: one for the whole GPU."""
    scope: LimitScope = "cost"
    """cost: buckets by what a request costs; all: one for every path, which leaves the web page blank."""
    dry_run: Flag = False
    """Count what would be refused or held back, but let it pass."""
    max_keys: Count = 80_000
    """Client addresses remembered per GPU, shared evenly by its buckets; the longest unseen is forgotten first."""
    idle: Seconds = 60.0
    """Seconds after which an unused, refilled bucket is forgotten."""
    max_delay: Seconds = 8.0
    """Seconds that a request of a bucket with refuse = false is held back at most; below clients' usual 10 s."""
    submit: Rate = Rate(10, 20)
    """POST /prompt: what costs GPU time."""
    upload: Rate = Rate(10, 20)
    """POST /upload/…: what costs disk."""
    control: Rate = Rate(10, 20)
    """Interrupt, free, queue and history writes, settings, workflows saved, and every other write."""
    read: Rate = Rate(50, 200)
    """GET of the API: object_info, view, history, queue; web files have no bucket and are never refused."""
    events: Rate = Rate(5, 50, refuse=False)
    """WebSocket handshakes: a page whose handshake is refused asks again at once, so they are held back."""
    all: Rate = Rate(10, 20)
    """In place of the five above when scope = "all"."""


@dataclass(frozen=True)
class Forwarded:
    """``[forwarded]``: whose ``X-Forwarded-*`` is believed."""

    trusted_proxies: tuple[Network, ...] = ()
    """Addresses or networks (CIDR) of proxies before us; from all others these headers are replaced."""


@dataclass(frozen=True)
class Jobs:
    """``[jobs]``: what is promised to those who submit, and how long it is remembered."""

    journal: Text = "data/jobs"
    """Folder of the journal of jobs; empty: none, and jobs are lost with the backend that had them."""
    resubmit: Resubmit = "all"
    """After the backend dies: all runs what had started again; pending-only fails it, where nothing may run twice."""
    accept_while_down: Flag = False
    """true: submissions are taken, unchecked, while the backend is away; false: they are refused with 503."""
    keep: Count = 10_000
    """Ended jobs that are remembered at most, in history and against being sent twice."""
    keep_for: Seconds = 7 * 86_400.0
    """How long they are remembered at most."""
    look: Seconds = 0.5
    """Seconds between two looks at unfinished jobs; less sees sooner what ran when a backend died."""
    orphan: Seconds = 60.0
    """Seconds that the backend outlives a gateway that was killed, so that the next one finds it at work."""
    stay: Stay = "auto"
    """stick: a client's front-door jobs stay with one backend, free: go to any; auto: free where folders are shared."""
    move_after: Seconds = 30.0
    """Seconds after which jobs of the front door that have not started leave a backend that is away for another."""
    hold_events: Seconds = 120.0
    """Seconds that a client's WebSocket is held open while the backend is away; then it is closed."""


@dataclass(frozen=True)
class Log:
    """``[log]``: what is written."""

    level: Level = "info"
    """The least grave level that is written: debug, info, warning or error."""
    format: LogFormat = "text"
    """text for people; json: one object a line, access lines and the backend's included."""
    access: Flag = True
    """One line per request."""


@dataclass(frozen=True)
class Config:
    """A whole, valid configuration."""

    listen: Listen = field(default_factory=Listen)
    backend: Backend = field(default_factory=Backend)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    rate: RateLimits = field(default_factory=RateLimits)
    forwarded: Forwarded = field(default_factory=Forwarded)
    cache: Cache = field(default_factory=Cache)
    jobs: Jobs = field(default_factory=Jobs)
    webhooks: Webhooks = field(default_factory=Webhooks)
    schedule: Schedule = field(default_factory=Schedule)
    auth: Auth = field(default_factory=Auth)
    tls: Tls = field(default_factory=Tls)
    log: Log = field(default_factory=Log)
    tracing: Tracing = field(default_factory=Tracing)
    further: tuple[Backend, ...] = ()
    """The second ``[[backend]]`` of the file and those after it; ``backend`` is the first, and mostly the only one."""

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Every backend as the file names it."""
        return (self.backend, *self.further)

    @property
    def gpus(self) -> int:
        """Number of GPUs: one per port."""
        return len(self.listen.gpu_ports)
