"""Raw blocks of quantised weights, read wrongly."""
