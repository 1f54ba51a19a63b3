"""Task files for lm-evaluation-harness over the same prompts: `lm_eval --include_path` this directory."""
