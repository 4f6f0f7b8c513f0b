"""ComfyUI 0.3.64 (October 2025): the version the overlay was first written against; the defaults are its shapes."""

from backend.overlay.versions.version import Version

VERSION = Version(number="0.3.64", public=lambda item: list(item[:5]))
