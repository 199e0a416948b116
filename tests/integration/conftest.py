"""Fixtures shared by the integration tests."""

from __future__ import annotations

from ray_fixtures import ray_session
from store_fixtures import embedded_store, proxied, s3_store, store

__all__ = ["embedded_store", "proxied", "ray_session", "s3_store", "store"]
