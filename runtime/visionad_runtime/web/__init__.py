"""The inspector over HTTP; needs the extra `serve`."""
