"""The network: preprocessing, a vision transformer and a head; its weights, from anywhere."""
