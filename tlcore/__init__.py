"""tlcore: distributed transfer learning on Ray Tune and DeepSpeed, with checkpoints that stream to object storage."""

__version__ = "0.1.0"
