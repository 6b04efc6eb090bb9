"""A block's weights on their way in: read ahead of need, and through pinned memory where they go to a GPU."""
