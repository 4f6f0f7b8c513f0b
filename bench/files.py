"""How many files a process of the bench may open."""

import resource


def allow_files() -> int:
    """Raise this process's limit, and its children's, as far as the system lets it; the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
