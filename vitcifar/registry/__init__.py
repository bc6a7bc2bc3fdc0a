"""Which release counts: versions, aliases, gates, history, model card, doctor."""
