"""What happens to the data: one folder per containerized component."""
