"""Exchange: what was learned as files that other programs read, and back."""
