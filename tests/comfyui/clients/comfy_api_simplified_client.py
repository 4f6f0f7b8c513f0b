"""comfy-api-simplified: opens its socket after the POST, and takes any ``queue_remaining == 0`` for the end."""

import json
import sys
from pathlib import Path

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

host, seed, jobs, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
api = ComfyApiWrapper(f"http://{host}")
for number in range(seed, seed + jobs):
    prompt = json.loads((folder / f"{number}.json").read_text())
    for name, node in prompt.items():
        node["_meta"] = {"title": "Save" if name == "3" else name}
    images = api.queue_and_wait_images(ComfyWorkflowWrapper(prompt), "Save")
    (folder / f"{number}.png").write_bytes(next(iter(images.values())))
