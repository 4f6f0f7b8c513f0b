"""How the lanes of one process share weights: the modes, and what the environment calls them.

Pure. Both bodies and the command line read it here.
"""

from collections.abc import Mapping
from typing import Final

SWITCH: Final = "COMFY_SHARE_WEIGHTS"
MODES: Final = ("on", "strict", "off")
"""One host copy, whose in-place writers are put right; one that nobody can write; a copy for each lane."""

_WORDS: Final = {
    "": "on", "1": "on", "true": "on", "yes": "on", "on": "on", "writable": "on",
    "strict": "strict",
    "0": "off", "false": "off", "no": "off", "off": "off",
}  # fmt: skip


def mode(env: Mapping[str, str]) -> str:
    """One of ``MODES``; raises ``ValueError`` for a word that means none."""
    word = env.get(SWITCH, "").strip().lower()
    if word not in _WORDS:
        raise ValueError(f"{SWITCH} is {word!r}; it must be one of {', '.join(MODES)}")
    return _WORDS[word]
