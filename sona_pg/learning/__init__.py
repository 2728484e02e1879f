"""How learning works: arrays in, arrays out. Nothing here reads a file or speaks to a database."""
