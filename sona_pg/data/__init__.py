"""Numbers that ship with the package."""
