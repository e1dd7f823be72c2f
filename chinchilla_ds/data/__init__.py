"""From raw text to micro-batches: `prepare.prepare` writes a tokenised corpus, `loader.TokenLoader` reads it."""
