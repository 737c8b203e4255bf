"""What only the published book needs."""
