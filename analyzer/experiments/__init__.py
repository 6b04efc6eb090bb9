"""The paper's experiments, a file each: what super weights do in a model, beside what was published for it."""
