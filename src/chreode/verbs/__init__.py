"""What a fitted model can do: stream cells, evaluate the module, write slots with their provenance."""
