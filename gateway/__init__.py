"""comfy-gateway: one port per GPU, each a complete ComfyUI, and a balanced front door.

The dictionary; each word means one thing in code, docs and metrics:

client   who calls the gateway
backend  one process that serves the contract (ComfyUI's own HTTP and WebSocket API plus a few routes)
lane     one GPU's queue, worker thread and counters inside a backend
device   what torch calls ``cuda:0``
request  one HTTP exchange
job      one prompt from submission to result; ``prompt_id`` is its name on the wire
bridge   two joined WebSocket streams
fleet    the table of backends and their lanes

``gpu`` is the word users see: the header ``X-TARGET-GPU``, the field ``gpu_id``, metric labels, config.
"""

__version__ = "0.1.0"
