"""The network: preprocessing, vision transformer and head; initial weights, LoRA, prediction."""
