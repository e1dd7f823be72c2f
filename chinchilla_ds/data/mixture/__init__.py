"""Mixture search: small runs on many mixtures of the sources, and the mixture that a regression predicts to be best."""
