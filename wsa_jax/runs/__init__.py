"""What runs keep on disk: their identity, checkpoints, and how they resume."""
