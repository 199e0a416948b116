"""Saves and restores over a network with faults: python -m jobs.bench.network"""
