"""The text of ``config.toml``: units, single values, line numbers, contradictions, the file written out.

Everything here is pure and serves ``config_load``; nothing else in the gateway needs it once a ``Config`` exists.
"""
