"""`dstj`: private LLM training from one file, with or without a cluster."""
