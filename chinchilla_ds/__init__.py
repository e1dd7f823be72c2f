"""chinchilla-ds: a compute budget goes in, the best language model that budget can buy comes out."""
