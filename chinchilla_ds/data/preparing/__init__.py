"""From a recipe to a prepared folder."""
