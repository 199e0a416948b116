"""The commands by topic: each file owns a few, with their options, and puts them on the application of `cli.py`."""
