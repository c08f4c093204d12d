"""What the endpoints of every kind share: turns at the model, refusals, requests whose client went away."""
