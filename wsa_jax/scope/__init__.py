"""Weight scopes: their layers, moments, fusion and divergence, and regularization towards them."""
