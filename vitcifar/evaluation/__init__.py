"""Metrics of any predictor (images to logits), with intervals, calibration, comparison and further checks."""
