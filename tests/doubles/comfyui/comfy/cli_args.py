"""The command line."""

import argparse

import comfy.options

parser = argparse.ArgumentParser()
parser.add_argument("--listen", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8188)
parser.add_argument("--cpu", action="store_true")
parser.add_argument("--cuda-device", default=None)
parser.add_argument("--default-device", type=int, default=None)
parser.add_argument("--deterministic", action="store_true")
parser.add_argument("--preview-method", default="none")
parser.add_argument("--disable-all-custom-nodes", action="store_true")
parser.add_argument("--whitelist-custom-nodes", nargs="*", default=[])
args = parser.parse_args() if comfy.options.parsing else parser.parse_args([])
