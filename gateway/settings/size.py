"""A configuration for another number of GPUs.

Pure.
"""

from dataclasses import replace

from gateway.config import Config
from gateway.spec import MOST_GPUS


def with_gpus(config: Config, n: int) -> Config:
    """The same configuration for ``n`` GPUs: the first ports stay, further ones follow the last.

    Where the last is 0 the system chooses these too. Raises ``ValueError`` with a line for the user when there is no
    such configuration.
    """
    if not 1 <= n <= MOST_GPUS:
        raise ValueError(f"the number of GPUs is 1 to {MOST_GPUS}, not {n}")
    if not config.listen.gpu_ports:
        raise ValueError("[listen] gpu_ports is empty: the first port must be known")
    ports = config.listen.gpu_ports[:n]
    last = ports[-1]
    ports += tuple(last + i if last else 0 for i in range(1, n - len(ports) + 1))
    taken = [port for port in (config.listen.front_port, *ports) if port]
    if ports[-1] > 65535 or len(set(taken)) < len(taken):
        raise ValueError(
            f"{n} GPUs would need the ports {ports[0]} to {ports[-1]}, which pass 65535 or meet each other "
            f"or front_port {config.listen.front_port}; set [listen] gpu_ports"
        )
    return replace(config, listen=replace(config.listen, gpu_ports=ports))
