"""comfy-script: reads all node classes at start, makes each a Python function, and watches one socket for all jobs."""

import json
import sys
from pathlib import Path

from comfy_script.runtime import load

host, seed, jobs, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
load(f"http://{host}/")
from comfy_script.runtime import Workflow, nodes  # noqa: E402 (made by load)

for number in range(seed, seed + jobs):
    prompt = json.loads((folder / f"{number}.json").read_text())
    with Workflow(wait=True):
        noise = nodes.ProofSeededNoise(**prompt["1"]["inputs"])
        slept = nodes.ProofSleep(**{**prompt["2"]["inputs"], "image": noise})
        image = nodes.SaveImage(slept, prompt["3"]["inputs"]["filename_prefix"])
    image.wait()[0].save(folder / f"{number}.png")
sys.stdout.flush()
# Its watching thread never ends by itself.
import os  # noqa: E402

os._exit(0)
