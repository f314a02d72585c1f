"""Flow matching: probability paths, couplings and guidance. Pure functions of tensors."""
