"""Sources become examples, a held-out part and a ledger that closes."""
