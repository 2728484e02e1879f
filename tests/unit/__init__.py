"""Tests that need no database: types, learning, the instant loop in memory, settings, errors, layers."""
