"""kill -9 of every part of a running sweep, and what that costs."""
