"""Benches: what tlcore costs or saves against its peers, both measured in one run. Each is `python -m jobs.bench.<name> --json`."""
