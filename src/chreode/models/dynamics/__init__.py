"""What the neural ODEs share: velocities, how they are learned from series, and what drives what."""
