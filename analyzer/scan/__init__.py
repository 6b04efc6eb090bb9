"""The static scan: what ranks a weight, the scanner, what is kept of scans."""
