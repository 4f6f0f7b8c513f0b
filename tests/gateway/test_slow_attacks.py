"""slowhttptest's attacks, for some seconds each: everybody else is served meanwhile, and the attackers are cut off."""

import asyncio
import shutil

import pytest

from tests.doubles.http_stack import Stack, stack
from tests.doubles.wait import until

pytestmark = pytest.mark.skipif(
    shutil.which("slowhttptest") is None, reason="slowhttptest is not installed (Debian package of that name)"
)

ATTACKS = {
    "slow heads": ["-H", "-i", "1", "-x", "24"],
    "slow bodies": ["-B", "-i", "1", "-s", "8192", "-x", "10"],
    "slow readers": ["-X", "-w", "1", "-y", "1", "-n", "1", "-z", "1", "-k", "3"],
}


async def attacked(made: Stack, attack: list[str]) -> int:
    """Attack the gateway with two hundred connections for two seconds; the most of them that were open at once."""
    command = ["slowhttptest", *attack, "-c", "200", "-r", "200", "-l", "2", "-u", f"http://127.0.0.1:{made.port(0)}/x"]
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=nothing, stderr=nothing, stdin=nothing)
    most = 0
    try:
        while process.returncode is None:
            most = max(most, len(made.proxy.clients))
            await asyncio.sleep(0.02)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return most


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_slow_attack_leaves_others_served(name):
    """Requests of another client are answered all the time, and when it is over nothing of the attack is left."""
    served = 0
    over = asyncio.Event()

    async def others(made: Stack) -> None:
        nonlocal served
        async with made.client(1) as client:
            while not over.is_set():
                assert (await client.get("/", method="PUT", body=b"hello")).body == b"hello"
                served += 1
                await asyncio.sleep(0.005)

    timeouts = {"client_head": 1.0, "client_body": 1.0, "client_write": 1.0}
    async with stack(timeouts=timeouts) as made:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(others(made))
            most = await attacked(made, ATTACKS[name])
            over.set()
        assert most > 10
        assert served > 5
        await until(lambda: made.idle and not made.proxy.clients)
