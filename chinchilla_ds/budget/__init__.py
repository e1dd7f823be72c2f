"""From a compute budget to a plan: laws, shapes, batches, layouts and the DeepSpeed JSON. Imports no framework."""
