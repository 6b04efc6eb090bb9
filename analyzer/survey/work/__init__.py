"""One unit of a survey: a process of its own with limits, and the engine that runs several on this machine."""
