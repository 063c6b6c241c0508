"""EC2 as cloudrun sees it, against a real moto server."""
