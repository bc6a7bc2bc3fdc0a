"""What people look at: plots, the HTML report, and what a run logs."""
