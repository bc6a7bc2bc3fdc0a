"""What answers people: the page, REST and files on the command line. Never loads torch."""
