"""See the module docstrings; the table of rooms stands in the README."""
