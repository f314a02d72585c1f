"""Contrastive learning on images of 32 x 32 pixels: augmentations, encoders, SimCLR and a linear probe."""
