"""When learning happens."""
