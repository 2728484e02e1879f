"""Texts in and out: what makes vectors of them, and what makes an answer of the items that were found."""
