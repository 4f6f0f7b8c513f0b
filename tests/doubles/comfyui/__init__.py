"""A folder shaped like a ComfyUI checkout, as far as the overlay looks at one: a few hundred lines in our own words.

Run as a whole it serves prompts of its own few nodes. It has ComfyUI's faults on purpose: one queue, one client, one
registry, one prefix, one flag, one counter of files. What it lacks, the proofs with a real ComfyUI cover.
"""
