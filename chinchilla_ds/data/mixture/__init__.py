"""Mixture search: small runs on many mixtures of the sources, a regression, and the best mixture by its prediction."""
