"""The tables of a configuration file, by name.

Pure.
"""

from dataclasses import fields
from typing import Final

from gateway.config import Config

SECTIONS: Final = tuple(each.name for each in fields(Config) if each.name != "further")
"""``[[backend]]`` is one of them, however often it stands there."""
