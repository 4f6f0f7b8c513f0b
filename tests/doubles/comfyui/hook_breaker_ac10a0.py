"""Would put functions back."""
