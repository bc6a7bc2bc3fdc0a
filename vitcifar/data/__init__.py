"""Any picture, from a file or from bytes, to RGB uint8 (H, W, 3); sources; balanced, seeded, fingerprinted splits."""
