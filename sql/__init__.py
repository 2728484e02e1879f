"""Functions, views and policies of schema `sona`, applied in the order of the file names after every migration."""
