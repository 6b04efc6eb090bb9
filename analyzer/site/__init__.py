"""The catalog as a static web page."""
