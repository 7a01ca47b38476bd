"""Examples become examples with a difficulty."""
