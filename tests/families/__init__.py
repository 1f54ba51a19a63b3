"""Experts that transformers itself trained and saved, merged by the command line and loaded again."""
