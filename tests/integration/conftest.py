"""Fixtures shared by the integration tests."""

from __future__ import annotations

from store_fixtures import embedded_store, s3_store

__all__ = ["embedded_store", "s3_store"]
