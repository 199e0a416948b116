"""What the sweep's controller costs by itself."""
