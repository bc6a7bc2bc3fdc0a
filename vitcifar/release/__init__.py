"""What makes a registry version a proven release: export, parity, three flavors, the registry."""
