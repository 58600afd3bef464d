"""Adapter folders: reading, checking, watching, versions and leases."""
