"""comfyui-workflow-client: waits on its socket for ``executing`` without a node, then reads history."""

import asyncio
import sys
from pathlib import Path

from comfyuiclient import ComfyUIClientAsync

host, seed, jobs, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])


async def main() -> None:
    for number in range(seed, seed + jobs):
        client = ComfyUIClientAsync(host, str(folder / f"{number}.json"))
        await client.connect()
        try:
            results = await client.generate(["SaveImage"])
            results["SaveImage"].save(folder / f"{number}.png")
        finally:
            await client.close()


asyncio.run(main())
