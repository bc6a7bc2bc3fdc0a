"""The network (preprocessing, ViT, head), the loop and its checkpoints."""
