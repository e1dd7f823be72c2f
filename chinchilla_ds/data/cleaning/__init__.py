"""From documents to clean documents."""
