"""From a configuration to a running gateway: log, event loop, signals.

Must never know what the gateway does; ``app.py`` does.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Mapping, Sequence

from gateway.app import App
from gateway.automatic import Automatic
from gateway.config import Config
from gateway.process import apply_to_process, backend_line, log_to_stderr, loop_factory, say
from gateway.reload import Read

log = logging.getLogger("gateway.app")


def run(config: Config, env: Mapping[str, str], warnings: Sequence[object], read: Read | None = None) -> None:
    """Run the gateway until it is told to stop; raises ``StartError`` or ``ValueError`` with a line for the user.

    ``read`` gives configuration and warnings anew, for a reload.
    """
    log_to_stderr(config.log.level, config.log.format)
    for warning in warnings:
        log.warning("%s", warning)
    apply_to_process(config)
    automatic = Automatic.of(config, env)
    if automatic is not None:
        log.info('mode = "auto": %s', automatic.choice.why)
        config, read = automatic.settled(config), read and automatic.reading(read)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main(config, env, read, automatic))


async def _main(config: Config, env: Mapping[str, str], read: Read | None, automatic: Automatic | None) -> None:
    app = App(config, env, say, backend_line(config.log.format), read)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, app.stop)
    terminal = next((file for file in (0, 1, 2) if os.isatty(file)), None)

    def hung_up() -> None:
        # Also what a terminal sends that is closed; then nobody is left to stop it otherwise.
        if terminal is not None and not os.isatty(terminal):
            app.stop()
        else:
            app.reload()

    loop.add_signal_handler(signal.SIGHUP, hung_up)
    loop.add_signal_handler(signal.SIGUSR1, app.leave)
    if automatic is not None:
        supervisors = [upkeep.supervisor for upkeep in app.upkeeps if upkeep.supervisor is not None]
        automatic.watch(app.fleet.members, lambda: [each.pid for each in supervisors if each.pid is not None])
        app.fleet.choice, app.measuring = automatic.choice.why, automatic
    await app.run()
