"""All of a run's results become report.html, plots and summary.json."""
