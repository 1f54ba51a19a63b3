"""Files, indexes, plans and manifests that somebody got wrong, by accident or on purpose."""
