"""What calls the components, in which order, and where."""
