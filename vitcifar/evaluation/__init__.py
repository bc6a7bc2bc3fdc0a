"""Scores any predictor (pictures to logits): numbers with their intervals, comparisons, figures, report."""
