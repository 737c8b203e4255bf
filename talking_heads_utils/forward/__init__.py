"""What runs a model: one forward pass recorded, and parts of it run again under many interventions."""
