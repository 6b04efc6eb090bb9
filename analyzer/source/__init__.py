"""Where bytes come from: a local folder or the Hub, and reading ahead."""
