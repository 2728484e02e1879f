"""How learning works: arrays in, arrays out. Nothing here speaks to a database, and a file is touched by name alone."""
