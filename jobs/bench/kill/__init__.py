"""Kill -9 at any moment, over and over: python -m jobs.bench.kill"""
