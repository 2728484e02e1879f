"""Revisions of schema `sona`. They build tables and indexes, once; functions and views are in sql/."""
