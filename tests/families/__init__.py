"""A tiny random model and a few samples for each row of `tlcore/tasks/families.py`, by modality."""
