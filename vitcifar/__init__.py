"""Fine-tune, prove, register and serve vision transformers, tracked by MLflow."""

__version__ = "0.1.0"
