"""What a fitted model is asked: stream cells, ask the module, write slots with their provenance."""
