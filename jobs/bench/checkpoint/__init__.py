"""Saves and restores against their limits and their peers: python -m jobs.bench.checkpoint"""
