"""Programs to read and to start from; the wheel has them, too."""
