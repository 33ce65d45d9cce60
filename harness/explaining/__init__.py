"""From a site that diverges to an explanation."""
