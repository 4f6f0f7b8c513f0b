"""Would read pictures."""


def pillow(fn, arg):
    return fn(arg)
