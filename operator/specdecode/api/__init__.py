"""The custom resource: its types, its schema, its conditions."""
