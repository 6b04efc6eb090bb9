"""The commands of `superweight catalog`, one file each."""
