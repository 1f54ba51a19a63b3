"""Sinks: where outputs are written."""
