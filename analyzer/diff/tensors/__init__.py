"""Two versions of a model, tensor by tensor."""
