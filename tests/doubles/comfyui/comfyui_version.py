"""The version this folder says it is."""

__version__ = "0.3.64"
