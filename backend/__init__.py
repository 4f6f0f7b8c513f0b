"""One process, N lanes: an unmodified ComfyUI made parallel at run time, or a small embedded engine.

Knows nothing of the gateway; the two meet at a command line, a loopback port and ``backend.contract``.
"""
