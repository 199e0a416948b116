"""Whether `tlcore select` ranks sources as fine-tuning does; see `__main__.py`."""
