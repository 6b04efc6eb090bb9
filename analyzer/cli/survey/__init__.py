"""The commands of `superweight survey`, one file each."""
