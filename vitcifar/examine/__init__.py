"""Looks closer at a classifier than its scores do, and writes what it found into a run, with the report."""
