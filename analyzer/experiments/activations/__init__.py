"""Super activations over many windows, what each is set to, and what they are to attention."""
