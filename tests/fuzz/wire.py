"""``python -m tests.fuzz.wire [-max_total_time=SECONDS]``: the stage of the wire code under atheris.

atheris is not among the project's dependencies; ``pip install atheris`` where it has wheels. A finding ends the run
with the input that found it, which belongs into ``tests/gateway/test_wire_fuzz.py`` as an example.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.fuzz.corpus import ANSWERS, REQUESTS


def main() -> None:
    """Run until told to stop."""
    try:
        import atheris  # noqa: PLC0415 (said below where it is missing)
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris (hypothesis does the same in make test, for less long)")
    with atheris.instrument_imports(include=["gateway.wire", "gateway.ws_bridge", "gateway.proxy"]):
        from tests.doubles.wire_stage import play  # noqa: PLC0415 (instrumented as it is imported)
    runner = asyncio.Runner()

    def one(data: bytes) -> None:
        raised: list[object] = []
        runner.get_loop().set_exception_handler(lambda _, context: raised.append(context))
        runner.run(play(data))
        if raised:
            raise RuntimeError(raised)

    with tempfile.TemporaryDirectory("-comfy-gateway-fuzz") as folder:
        for number, piece in enumerate(REQUESTS + ANSWERS):
            code = 0 if number < len(REQUESTS) else 10
            first = REQUESTS[0]
            start = b"" if code == 0 else bytes((0,)) + len(first).to_bytes(2, "big") + first
            seed = start + bytes((code,)) + len(piece).to_bytes(2, "big") + piece
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
