"""Databases as earlier versions of the code have left them, one for each revision of the schema."""
