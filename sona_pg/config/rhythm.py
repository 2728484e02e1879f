"""How often the slow loops run."""

from __future__ import annotations

BACKGROUND_SECONDS = 3600.0
"""Time between two cycles of loop B."""

DEEP_SECONDS = 7 * 86_400.0
"""Time between two cycles of loop C."""
