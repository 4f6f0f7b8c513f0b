"""Whether the command line is read."""

parsing = False


def enable_args_parsing(enable=True):
    global parsing  # noqa: PLW0603 (as ComfyUI has it)
    parsing = enable
