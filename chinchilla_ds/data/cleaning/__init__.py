"""Rules that repair documents, replace personal data in them, or drop them; decontamination."""
