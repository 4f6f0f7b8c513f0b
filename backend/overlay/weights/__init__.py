"""One host copy of the weights: every lane has its own modules, all of them over the same tensors.

Words used here: a *master* is a host tensor that modules of several lanes point at and nobody writes; a *file* is one
set of masters; a *loading* is the time a ComfyUI loader runs; a module *remembers* its masters, so that moving it to
the CPU points at them again instead of copying. Knows torch; ComfyUI's names stand in ``patches/weights.py``.
"""
