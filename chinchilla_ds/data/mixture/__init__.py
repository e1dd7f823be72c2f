"""Mixture search: small runs on many mixtures of the sources, a regression, and the mixture it predicts to be best."""
