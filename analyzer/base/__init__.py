"""What every room uses: errors, coordinates, progress, text, config.json, files written whole."""
