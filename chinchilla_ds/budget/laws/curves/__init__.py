"""Laws of the loss over a whole run: curves, schedules, two laws, their fit, and how far off a prediction is."""
