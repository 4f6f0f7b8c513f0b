"""The commands that talk to a running gateway or look at this machine. Never part of the gateway itself."""
