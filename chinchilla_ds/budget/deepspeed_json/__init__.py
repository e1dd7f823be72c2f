"""DeepSpeed's JSON: every key, who decides it, and the resolved file."""
