"""What a person looks at: overlays and contact sheets, and HTML pages made of templates."""
