"""The page, REST and batch prediction. Nothing here loads torch."""
