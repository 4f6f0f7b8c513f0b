"""Side-by-side benches: the gateway and nginx, in one run, on one machine, in turns."""
