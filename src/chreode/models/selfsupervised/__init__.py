"""What the self-supervised models share: encoders and heads, views of cells, and what is kept of a fit."""
