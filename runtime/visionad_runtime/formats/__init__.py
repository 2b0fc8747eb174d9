"""File formats: manifests of models and banks, model folders, atomic writes."""
