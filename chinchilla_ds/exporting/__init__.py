"""Export and import of Hugging Face folders: trained models for other tools, and other models for training here."""
