"""What trials ask of the cluster, and what it has: shapes and room, growth, GPU memory, and whether a point fits.

Called by `search/`, by the slots, and by the driver before a sweep.
"""
