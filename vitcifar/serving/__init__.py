"""The page, REST and prediction of files on the command line. Never loads torch."""
