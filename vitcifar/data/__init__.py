"""Images from files and bytes; sources; balanced, seeded, fingerprinted splits."""
